"""The study's downstream tasks: items that really stand in the test texts, with one right answer each, the same ones every time."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from studies.data_mixing import downstream
from tests.support.tiny_models import Models

TASKS = ["gsm_choice", "code_choice", "reference_choice"]
WORDS = [
    "apple",
    "table",
    "chair",
    "garden",
    "window",
    "little",
    "yellow",
    "orange",
    "stone",
    "water",
    "river",
    "forest",
]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """A small file of each text; of maths, sums with dollars, thousands and a chance to copy."""
    sums = [
        f"{'Ann has some apples and buys some more of them. ' * 3}\n{i} apples cost ${i * 997} + ${i} = ${i * 998:,}.\n#### {i}"
        for i in range(1, 9)
    ]
    prose = [f" {i} ".join([*WORDS[i:], *WORDS[:i]] * 3) for i in range(len(WORDS))]
    for name, documents in {"gsm": sums, "code": prose, "reference": prose[:4]}.items():
        (tmp_path / f"{name}.test.jsonl").write_text(
            "".join(json.dumps({"text": document}) + "\n" for document in documents)
        )
    return tmp_path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_same_every_time_and_other_ones_for_another_seed(texts: Path, tmp_path: Path) -> None:
    written = {}
    for folder, seed in (("first", 0), ("second", 0), ("third", 1)):
        assert downstream.write_tasks(texts, tmp_path / folder, items=8, seed=seed) == TASKS
        written[folder] = [(tmp_path / folder / f"{name}.jsonl").read_bytes() for name in TASKS]
    assert written["first"] == written["second"]
    assert all(first != third for first, third in zip(written["first"], written["third"], strict=True))


@pytest.mark.parametrize("name", ["gsm", "code", "reference"])
def test_the_right_continuation_and_no_other_is_in_the_texts(texts: Path, name: str) -> None:
    downstream.write_tasks(texts, texts / "tasks", items=8)
    documents = [document["text"] for document in read(texts / f"{name}.test.jsonl")]
    found = read(texts / "tasks" / f"{name}_choice.jsonl")
    assert len(found) == 8
    assert len({item["label"] for item in found}) > 1
    for item in found:
        assert len(set(item["choices"])) == 4
        there = [any(item["context"] + choice in document for document in documents) for choice in item["choices"]]
        assert there == [number == item["label"] for number in range(4)]


def test_results_of_sums(texts: Path) -> None:
    """The right number is the sum, and the others differ in the last digit alone."""
    downstream.write_tasks(texts, texts / "tasks", items=8)
    for item in read(texts / "tasks" / "gsm_choice.jsonl"):
        first, second = (int(number) for number in re.findall(r"\$(\d+)", item["context"]))
        assert item["choices"][item["label"]] == f" ${first + second:,}"
        assert len({choice[:-1] for choice in item["choices"]}) == 1


def test_each_document_has_its_turn(texts: Path) -> None:
    downstream.write_tasks(texts, texts / "tasks", items=8)
    documents = [document["text"] for document in read(texts / "reference.test.jsonl")]
    found = read(texts / "tasks" / "reference_choice.jsonl")
    whole = [item["context"] + item["choices"][item["label"]] for item in found]
    assert {next(i for i, document in enumerate(documents) if text in document) for text in whole[:4]} == {0, 1, 2, 3}


def test_too_few_places(texts: Path) -> None:
    with pytest.raises(ValueError, match=r"gsm.test.jsonl' has places for 8 items, and 9 are asked for"):
        downstream.write_tasks(texts, texts / "tasks", items=9)


def test_accuracies(llama: Models, texts: Path) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama.base), AutoTokenizer.from_pretrained(llama.base)
    downstream.write_tasks(texts, texts / "tasks", items=8)
    found = downstream.accuracies(model, tokenizer, texts / "tasks", limit=6)
    assert sorted(found) == sorted(TASKS)
    for score in found.values():
        assert len(score["each"]) == 6
        assert set(score["each"]) <= {0, 1}
        assert score["accuracy"] == pytest.approx(sum(score["each"]) / 6)
