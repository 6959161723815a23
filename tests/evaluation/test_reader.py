"""What counts as a dataset, which tokens of it are scored, and how it is split."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub.errors import ConfigError
from dem_hub.evaluation.reader import Reader, read_and_split
from dem_hub.evaluation.rows import read_rows
from dem_hub.evaluation.split import split
from dem_hub.evaluation.windows import NOT_SCORED, Window, hash_windows
from tests.support.tiny_models import Models

N = NOT_SCORED


@pytest.fixture
def tokenizer(llama: Models) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llama.base)


def ids(windows: list[Window]) -> list[list[int]]:
    return [list(window.input_ids) for window in windows]


def labels(windows: list[Window]) -> list[list[int]]:
    return [list(window.labels) for window in windows]


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


def test_only_the_completion_is_scored(tokenizer: Any) -> None:
    assert labels(Reader(lambda: tokenizer).windows([{"prompt": "w1 w2", "completion": " w3"}])) == [[N, N, 7]]


@pytest.mark.parametrize("form", ["messages", "prompt and completion"])
def test_only_answers_of_a_conversation_are_scored(tokenizer: Any, form: str) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'w50 ' if m['role'] == 'user' else 'w51 ' }}{{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}{{ 'w51 ' }}{% endif %}"
    )
    turns = [("user", "w1 w2"), ("assistant", "w3"), ("user", "w4"), ("assistant", "w5 w6")]
    messages = [{"role": role, "content": content} for role, content in turns]
    row = {"messages": messages} if form == "messages" else {"prompt": messages[:3], "completion": messages[3:]}
    found = Reader(lambda: tokenizer).windows([row])
    assert ids(found) == [[54, 5, 6, 55, 7, 54, 8, 55, 9, 10]]
    assert labels(found) == [[N, N, N, N, 7, N, N, N, 9, 10]]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "w1"},
            {"role": "assistant", "content": "w2"},
            {"role": "user", "content": "w3"},
        ]
    }
    tokenizer.chat_template = "w{{ messages | length }} {% for m in messages %}{{ m['content'] }} {% endfor %}"
    with pytest.raises(ConfigError, match="writes the turns before message 1 differently than in the whole"):
        Reader(lambda: tokenizer).windows([row])


def test_packing_fills_windows(tokenizer: Any) -> None:
    end = tokenizer.eos_token_id
    found = Reader(lambda: tokenizer, 4, packing=True).windows(
        ["w1 w2 w3", "w4 w5", {"prompt": "w6", "completion": "w7"}]
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


def test_seq2seq_rows(tokenizer: Any) -> None:
    found = Reader(lambda: tokenizer, is_seq2seq=True).windows(
        [{"prompt": "w1 w2", "completion": "w3"}, {"input_ids": [5], "labels": [6, 7]}]
    )
    assert list(zip(ids(found), labels(found), strict=True)) == [([5, 6], [7]), ([5], [6, 7])]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (
            {"question": "w1", "answer": "w2"},
            {},
            "Rows have the columns question, answer; give 'text', 'messages' or 'input_ids'",
        ),
        ({"text": "w1"}, {"is_seq2seq": True}, "give 'prompt' and 'completion', or 'input_ids' and 'labels'"),
        ({"input_ids": [1, 2]}, {"is_seq2seq": True}, "has input_ids and no labels"),
        ({"input_ids": [1, 2], "labels": [1]}, {}, "it has 2 input_ids, 1 labels and 2 values in the attention mask"),
        ({"input_ids": [0.5, 1.0]}, {}, "is no list of token ids"),
        ({"input_ids": [[1, 2]]}, {}, r"of shape \[1, 2\] is no list of token ids"),
    ],
)
def test_rows_of_another_kind(tokenizer: Any, row: Any, options: dict[str, Any], message: str) -> None:
    good = {"input_ids": [1, 2], "labels": [1, 2]}
    with pytest.raises(ConfigError, match=f"1 of 2 rows cannot be read.\n  - row 2: .*{message}"):
        Reader(lambda: tokenizer, **options).windows([good, row])


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


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", " \n", "has no text in it"),
        ("a.jsonl", "", "has no text in it"),
        ("a.jsonl", "[1]", "line 1: not a JSON object, but list"),
        ("a.jsonl", '{"text": "x"}\n{', "line 2: not a JSON object"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_rows(tmp_path / name)


def test_a_file_that_is_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_rows(tmp_path / "a.txt")


def test_plain_file_is_one_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first\nsecond\n")
    assert read_rows(tmp_path / "a.txt") == [{"text": "first\nsecond\n"}]


def made(documents: list[int]) -> list[Window]:
    return [Window((number, number + 1), (number, number + 1), document) for number, document in enumerate(documents)]


@pytest.mark.parametrize(("share", "held"), [(0.25, 2), (0.5, 4), (0.01, 1), (0.99, 7), (0.0, 0)])
def test_split_never_cuts_a_document(share: float, held: int) -> None:
    windows = made([number // 3 for number in range(24)])
    first, second = split(windows, share, seed=1)
    assert len({window.document for window in second}) == held
    assert not {window.document for window in first} & {window.document for window in second}
    assert sorted(first + second, key=lambda window: window.input_ids) == windows
    assert split(windows, share, seed=1) == (first, second)


@pytest.mark.parametrize(("count", "sizes"), [(8, (6, 2)), (2, (1, 1)), (1, (1, 0))])
def test_a_single_document_is_cut_at_its_end(count: int, sizes: tuple[int, int]) -> None:
    first, second = split(made([0] * count), 0.25)
    assert (len(first), len(second)) == sizes
    assert first + second == made([0] * count)


def test_everything_wrong_is_said_at_once() -> None:
    data = {"none": [], "short": [[1]], "odd": [{"question": 1}], "good": [[1, 2]]}
    with pytest.raises(ConfigError, match="3 of 4 distributions cannot be used") as error:
        read_and_split(Reader(lambda: None), data, 0.25, 0)
    assert all(f"'{name}': " in str(error.value) for name in ("none", "short", "odd"))


def test_digest_tells_ids_and_labels() -> None:
    first = Window((1, 2), (1, 2))
    assert hash_windows([first]) == hash_windows([Window((1, 2), (1, 2), document=7)])
    assert (
        len(
            {
                hash_windows(rows)
                for rows in ([first], [Window((1, 2), (N, 2))], [Window((1, 3), (1, 3))], [first, first])
            }
        )
        == 4
    )
