"""Datasets as windows: every form of dataset, packing, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub.errors import ConfigError
from dem_hub.evaluation.reader import Reader, read_and_split
from dem_hub.evaluation.windows import NOT_SCORED
from tests.support.windows import ids, labels

N = NOT_SCORED


DATASETS = {
    "texts": ["w1 w2 w3", "w4 w5"],
    "rows with text": [{"text": "w1 w2 w3"}, {"text": "w4 w5"}],
    "rows with input_ids": [{"input_ids": [5, 6, 7]}, {"input_ids": [8, 9]}],
    "rows with tensors": [
        {"input_ids": torch.tensor([5, 6, 7]), "labels": torch.tensor([5, 6, 7])},
        {"input_ids": torch.tensor([8, 9])},
    ],
    "rows with padding": [
        {"input_ids": [5, 6, 7, 0], "attention_mask": [1, 1, 1, 0]},
        {"input_ids": [0, 8, 9], "attention_mask": [0, 1, 1]},
    ],
    "token ids": [[5, 6, 7], [8, 9]],
}


@pytest.mark.parametrize("data", DATASETS.values(), ids=DATASETS)
def test_datasets(tokenizer: Any, data: Any) -> None:
    found = Reader(lambda: tokenizer).windows(data)
    assert ids(found) == labels(found) == [[5, 6, 7], [8, 9]]
    assert [window.document for window in found] == [0, 1]


def test_datasets_library(tokenizer: Any) -> None:
    from datasets import Dataset

    rows = Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9]], "labels": [[N, 6, 7], [N, 9]]})
    assert labels(Reader(lambda: tokenizer).windows(rows)) == [[N, 6, 7], [N, 9]]


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_is_a_dataset(tokenizer: Any, tmp_path: Path, kind: type) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "w1 w2 w3"}\n\n{"text": "  "}\n{"input_ids": [8, 9], "labels": [-100, 9]}\n')
    assert labels(Reader(lambda: tokenizer).windows(kind(path))) == [[5, 6, 7], [N, 9]]


def test_tokenizer_is_not_asked_for_token_ids() -> None:
    def fail() -> Any:
        raise AssertionError("no text, no tokenizer")

    assert ids(Reader(fail, max_length=2).windows([[1, 2, 3]])) == [[1, 2]]  # the third predicts nothing


@pytest.mark.parametrize(("length", "sizes"), [(4, [4, 4, 2]), (3, [3, 3, 3]), (64, [10])])
def test_long_texts_are_cut_into_windows(tokenizer: Any, length: int, sizes: list[int]) -> None:
    found = Reader(lambda: tokenizer, length).windows([" ".join(f"w{number}" for number in range(10))])
    assert [len(window.input_ids) for window in found] == sizes
    assert {window.document for window in found} == {0}


def test_packing_fills_windows(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    found = Reader(lambda: tokenizer, 4, packing=True).windows(
        ["w1 w2 w3", "w4 w5", {"prompt": "w6", "completion": " w7"}]
    )
    assert ids(found) == [[5, 6, 7, end], [8, 9, end, 10], [11, end]]
    assert labels(found) == [[5, 6, 7, end], [8, 9, end, N], [11, end]]
    assert [window.document for window in found] == [0, 1, 2]


def test_packed_documents_are_split_before_they_are_packed(tokenizer: Any) -> None:
    """Of a document that ends in another's window, too, no piece is on the other side."""
    texts = [f"w{number} w{number} w{number}" for number in range(12)]
    reader = Reader(lambda: tokenizer, 8, packing=True)
    data, held = read_and_split(reader, {"words": texts}, 0.25, seed=0)
    first, second = (
        {token for window in side["words"] for token in window.input_ids} - {tokenizer.eos_token_id}
        for side in (data, held)
    )
    assert (len(first), len(second), first & second) == (9, 3, set())


def test_windows_of_one_token() -> None:
    with pytest.raises(ConfigError, match="max_length is 1; it must be 2 or more"):
        Reader(lambda: None, max_length=1)


def test_windows_with_nothing_to_score_are_left_out() -> None:
    rows = [
        {"input_ids": [1, 2, 3], "labels": [1, N, N]},
        {"input_ids": [4], "labels": [4]},
        {"input_ids": [5, 6], "labels": [N, 6]},
    ]
    assert ids(Reader(lambda: None).windows(rows)) == [[5, 6]]


def test_everything_wrong_is_said_at_once() -> None:
    data = {"none": [], "short": [[1]], "odd": [{"question": 1}], "good": [[1, 2]]}
    with pytest.raises(ConfigError, match="3 of 4 distributions cannot be used") as error:
        read_and_split(Reader(lambda: None), data, 0.25, 0)
    assert all(f"'{name}': " in str(error.value) for name in ("none", "short", "odd"))
