"""The study's five distributions: four that are there from the start, and exam questions that come later.

Four are those of `dem-hub demo` and of the benchmarks. The fifth are questions of 57 school and university subjects, each with its
reasoning, which lm-evaluation-harness brings along as examples for prompts; a group is a subject.
"""

import importlib.util
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dem_hub.demo.texts import load_distributions, split_by_group, write_distributions
from dem_hub.evaluation.windows import Window
from studies.data_mixing.settings import LATER, NAMES

_EXAMS = "tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"


def prepare_texts(folder: Path) -> Path:
    """Write `<folder>/<name>.<side>.jsonl` of all five, once."""
    if not (folder / f"{LATER}.test.jsonl").is_file():
        write_distributions([*load_distributions(NAMES), split_by_group(LATER, _exams(), seed=0)], folder)
    return folder


def read_texts(folder: Path, name: str, side: str) -> list[str]:
    """The documents of one side of a distribution."""
    return [json.loads(line)["text"] for line in (folder / f"{name}.{side}.jsonl").read_text("utf-8").splitlines()]


def take(texts: Sequence[str], tokens: int, tokenizer: Any) -> list[str]:
    """As many documents from the first on as hold so many tokens, counting one between documents."""
    taken, count = [], 0
    for text in texts:
        if count >= tokens:
            return taken
        taken.append(text)
        count += len(tokenizer(text)["input_ids"]) + 1
    if count < tokens:
        raise SystemExit(f"There are {count} tokens of text, and {tokens} are wanted. Train for fewer steps.")
    return taken


def windows(texts: Sequence[str], tokens: int, length: int, tokenizer: Any) -> list[Window]:
    """The beginnings of documents, one window each, until there are so many tokens."""
    found: list[Window] = []
    count = 0
    for number, text in enumerate(texts):
        ids = tuple(tokenizer(text)["input_ids"][:length])
        found.append(Window(ids, ids, number))
        count += len(ids)
        if count >= tokens:
            break
    return found


def _exams() -> Iterator[tuple[str, str]]:
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise SystemExit("The study needs lm-evaluation-harness: pip install dem-hub[eval]")
    subjects = json.loads((Path(spec.origin).parent / _EXAMS).read_text("utf-8"))
    for subject, prompt in sorted(subjects.items()):
        for question in prompt.split("\n\nQ: ")[1:]:
            yield subject, question.strip()
