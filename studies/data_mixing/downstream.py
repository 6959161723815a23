"""Downstream tasks, made from the test side of the study's own texts and scored through lm-evaluation-harness.

Each item is a context and four continuations, of which the model should find that one the most likely which was really there. Of maths it
is the next result of a worked answer, among numbers with another last digit; of other texts the next word, among words of the same
document that are about as long. Continuations that differ in their last token alone cost the harness one forward pass, not four: hence no
whole lines. The items come from test texts alone, and are the same for every model.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from random import Random
from typing import Any

from dem_hub.evaluation.tasks import find_tasks, score_tasks

NAMES = ("gsm", "code", "reference")
CHOICES = 4
CONTEXT = (100, 400)  # characters: at the most about 120 tokens
STEP = re.compile(r"[-+*/x]\s?[^\w\s]?[\d.,]+%?\s?=(?P<right>\s?[^\w\s]?(\d{1,3}(,\d{3})+|\d+))")  # 9 * $6 = $54
WORD = re.compile(r"(?<=\S)(?P<right> [a-z]{4,8})\b")


def write_tasks(texts: Path, folder: Path, items: int = 100, seed: int = 0) -> list[str]:
    """Write a task for each of [`NAMES`]: its items as JSONL, and the YAML that tells the harness of them.

    Args:
        texts (`Path`): folder with `<name>.test.jsonl`, one `{"text": ...}` a line.
        folder (`Path`): where to write; made if it does not exist.
        items (`int`): of each task.
        seed (`int`): decides which places of the texts become items, and the wrong continuations.

    Returns:
        `list[str]`: the tasks' names.

    Raises:
        `ValueError`: a text has too few places for as many items.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks = []
    for name in NAMES:
        lines = (texts / f"{name}.test.jsonl").read_text("utf-8").splitlines()
        random = Random(f"{name}/{seed}")
        documents = [json.loads(line)["text"] for line in lines]
        made = worked_steps(documents, random) if name == "gsm" else next_words(documents, random)
        found = list(islice(made, items))
        if len(found) < items:
            raise ValueError(
                f"'{texts / f'{name}.test.jsonl'}' has places for {len(found)} items, and {items} are asked for."
            )
        tasks.append(f"{name}_choice")
        data = folder / f"{tasks[-1]}.jsonl"
        data.write_text("".join(json.dumps(item) + "\n" for item in found), "utf-8")
        (folder / f"{tasks[-1]}.yaml").write_text(json.dumps(_task(tasks[-1], data), indent=2), "utf-8")  # JSON is YAML
    return tasks


def accuracies(model: Any, tokenizer: Any, folder: Path, limit: int | None = None) -> dict[str, dict[str, Any]]:
    """Score a model on all tasks of a folder.

    Args:
        model (`PreTrainedModel`): the model.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        folder (`Path`): as [`write_tasks`] left it.
        limit (`int`, *optional*): items of each task, from the first; all by default.

    Returns:
        `dict[str, dict]`: by task `accuracy`, `error` (standard error), and `each`: 1 or 0 for each item, in the same order for every model.
    """
    tasks = find_tasks(sorted(path.stem for path in folder.glob("*.yaml")), folder)
    scores = score_tasks(model, tokenizer, tasks, limit=limit)
    return {
        name: {
            "accuracy": score.metrics["acc"],
            "error": score.errors["acc"],
            "each": [int(value) for value in score.each["acc"]],
        }
        for name, score in scores.items()
    }


def worked_steps(documents: Sequence[str], random: Random) -> Iterator[dict[str, Any]]:
    """Items in turn from each worked answer: the text up to an equals sign, then the result, and three that end in another digit."""
    for document, place in _in_turn(documents, STEP, random):
        right = place["right"]
        wrong = random.sample([digit for digit in "0123456789" if digit != right[-1]], CHOICES - 1)
        yield _item(document[: place.start("right")], [right, *(right[:-1] + digit for digit in wrong)], random)


def next_words(documents: Sequence[str], random: Random) -> Iterator[dict[str, Any]]:
    """Items in turn from each document: a piece of it, then the next word, and three of the document's other words."""
    for document, place in _in_turn(documents, WORD, random):
        right = place["right"]
        others = sorted(
            {found["right"] for found in WORD.finditer(document)} - {right},
            key=lambda word: (abs(len(word) - len(right)), word),
        )
        if len(others) >= 2 * CHOICES:
            end = place.start("right")
            context = document[max(0, end - CONTEXT[1] // 2) : end]
            yield _item(context, [right, *random.sample(others[: 2 * CHOICES], CHOICES - 1)], random)


def _in_turn(documents: Sequence[str], pattern: re.Pattern[str], random: Random) -> Iterator[tuple[str, re.Match[str]]]:
    """The places that can be asked for: one of each document, then another of each, and so on."""
    places = []
    for document in random.sample(documents, len(documents)):
        found = [place for place in pattern.finditer(document) if CONTEXT[0] <= place.start("right") <= CONTEXT[1]]
        places.append([(document, place) for place in random.sample(found, len(found))])
    return (place for turn in zip_longest(*places) for place in turn if place is not None)


def _item(context: str, texts: Sequence[str], random: Random) -> dict[str, Any]:
    """A context and its continuations in any order; the first of `texts` is the right one."""
    choices = random.sample(texts, len(texts))
    return {"context": context, "choices": choices, "label": choices.index(texts[0])}


def _task(name: str, data: Path) -> Mapping[str, Any]:
    """What the harness is told."""
    return {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(data.resolve())},
            "cache_dir": str(data.parent.resolve() / "cache"),
        },
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{context}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
