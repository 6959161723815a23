"""Perplexity: every token weighs the same, whatever the batches; and what counts as a dataset."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Models, Zoo

from dem_hub.errors import ConfigError
from dem_hub.search.objective import Likelihood, as_windows, evaluate, likelihood, mean_loss, read_texts, tokenize


@pytest.fixture(scope="module")
def model(zoo: Zoo) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(zoo.models("llama-tied", "float32").base)


@pytest.fixture
def tokenizer(llama: Models) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llama.base)


def windows(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 64, (length,), generator=generator).tolist() for length in lengths]


def one_by_one(model: Any, rows: list[list[int]]) -> tuple[float, int]:
    """The reference: log-softmax in float64, token by token."""
    total = 0.0
    for row in rows:
        with torch.no_grad():
            scores = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
        total -= sum(float(scores[place, token]) for place, token in enumerate(row[1:]))
    return total, sum(len(row) - 1 for row in rows)


@pytest.mark.parametrize("batch_size", [1, 3, 8, 100])
def test_is_the_sum_over_tokens(model: Any, batch_size: int) -> None:
    rows = windows(2, 30, 5, 17, 9, 9, 2, 64)
    total, tokens = one_by_one(model, rows)
    found = likelihood(model, rows, batch_size)
    assert found.tokens == tokens
    assert found.total == pytest.approx(total, rel=1e-6)  # float32 logits
    assert found.loss == pytest.approx(total / tokens, rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(total / tokens), rel=1e-5)


def test_more_positions_than_fit_in_one_piece(model: Any) -> None:
    rows = windows(120, 110, 100)
    assert likelihood(model, rows, 3).total == pytest.approx(one_by_one(model, rows)[0], rel=1e-6)


def test_evaluate_and_mean_loss(model: Any) -> None:
    data = {"short": windows(4, 5), "long": windows(40)}
    scores = evaluate(model, data, 2)
    assert list(scores) == ["short", "long"]
    assert mean_loss(scores) == pytest.approx((scores["short"].loss + scores["long"].loss) / 2)
    assert mean_loss({"a": Likelihood(6.0, 2), "b": Likelihood(1.0, 1)}) == 2.0


def test_long_texts_are_cut_into_windows(tokenizer: Any) -> None:
    text = " ".join(f"w{number}" for number in range(10))
    assert [len(window) for window in tokenize(tokenizer, [text], 4)] == [4, 4, 2]
    assert [len(window) for window in tokenize(tokenizer, [text], 3)] == [3, 3, 3]  # the tenth predicts nothing
    assert tokenize(tokenizer, ["w1"], 3) == []


DATASETS = {
    "texts": ["w1 w2 w3", "w4 w5"],
    "rows with text": [{"text": "w1 w2 w3"}, {"text": "w4 w5"}],
    "rows with input_ids": [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}],
    "token ids": [[5, 6, 7], [8, 9]],
}


@pytest.mark.parametrize("data", DATASETS.values(), ids=DATASETS)
def test_datasets(tokenizer: Any, data: Any) -> None:
    assert as_windows(lambda: tokenizer, data) == [[5, 6, 7], [8, 9]]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_is_a_dataset(tokenizer: Any, tmp_path: Path, kind: type) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "w1 w2 w3"}\n\n{"text": "  "}\n{"text": "w4 w5", "more": 1}\n')
    assert as_windows(lambda: tokenizer, kind(path)) == [[5, 6, 7], [8, 9]]


def test_datasets_library(tokenizer: Any) -> None:
    from datasets import Dataset

    assert as_windows(lambda: tokenizer, Dataset.from_dict({"text": ["w1 w2 w3", "w4 w5"]})) == [[5, 6, 7], [8, 9]]


def test_tokenizer_is_not_asked_for_token_ids() -> None:
    def fail() -> Any:
        raise AssertionError("no text, no tokenizer")

    assert as_windows(fail, [[1, 2, 3]], max_length=2) == [[1, 2]]


def test_plain_file_is_one_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("first\nsecond\n")
    assert read_texts(path) == ["first\nsecond\n"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", " \n", "has no text in it"),
        ("a.jsonl", "", "has no text in it"),
        ("a.jsonl", '{"text": "x"}\n{"txt": 1}', 'line 2: not a JSON object with a "text"'),
        ("a.jsonl", "[1]", "line 1: not a JSON object"),
        ("a.jsonl", "{", "line 1: not a JSON object"),
        ("a.jsonl", json.dumps({"text": 3}), "line 1: not a JSON object"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_texts(tmp_path / name)


def test_rows_of_another_kind(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match="Rows have the columns question, answer; give 'text' or 'input_ids'"):
        as_windows(lambda: tokenizer, [{"question": "w1", "answer": "w2"}])


def test_nothing_to_score(model: Any) -> None:
    with pytest.raises(ConfigError, match="every text is shorter than two tokens"):
        likelihood(model, [])
