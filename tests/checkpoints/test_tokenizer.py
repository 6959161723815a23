"""What is known of a fine-tune's tokens."""

from pathlib import Path

import pytest

from dem_hub.checkpoints.tokenizer import Token, Vocabulary, new_tokens
from tests.support.new_tokens import save_words

BASE = Vocabulary({"a": 0, "b": 1, "<s>": 2}, {"<s>": Token(2)})


def of(ids: dict[str, int]) -> Vocabulary:
    return Vocabulary(ids, {text: Token(id) for text, id in ids.items() if text.startswith("<")})


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({"a": 0, "b": 1, "<s>": 2}, []),
        ({"a": 0, "b": 1, "<s>": 2, "<x>": 3, "<y>": 4}, ["<x>", "<y>"]),
        ({"a": 0, "b": 1, "<s>": 2, "<x>": 5}, []),  # the embedding has no row for it
        ({"a": 0, "b": 1, "<other>": 2}, ["<other>"]),
        ({"a": 0, "b": 1, "<s>": 3}, ["<s>"]),
        ({"a": 0, "b": 1, "<s>": 2, "piece": 3}, None),
        ({"b": 0, "a": 1, "<s>": 2}, None),
    ],
)
def test_new_tokens(ids: dict[str, int], expected: list[str] | None) -> None:
    found = new_tokens(of(ids), BASE, rows=5, base_rows=4)
    assert (None if found is None else list(found)) == expected


def test_a_base_without_a_tokenizer() -> None:
    found = new_tokens(of({"a": 0, "<x>": 3, "<y>": 4}), None, rows=5, base_rows=4)
    assert found == {"<y>": Token(4)}


def test_a_finetune_without_a_tokenizer() -> None:
    assert new_tokens(None, BASE, rows=5, base_rows=4) is None


def test_pieces_are_said(caplog: pytest.LogCaptureFixture) -> None:
    new_tokens(of({"a": 0, "b": 1, "<s>": 2, "piece": 3}), BASE, rows=5, base_rows=4)
    assert "1 pieces of its own that the base's lacks ('piece')" in caplog.text


def test_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Vocabulary.read(tmp_path) is None
    save_words(tmp_path, 5, ["<r>"])
    vocabulary = Vocabulary.read(tmp_path)
    assert vocabulary is not None
    assert vocabulary.size == 5
    assert vocabulary.added == {"w0": vocabulary.added["w0"], "<r>": Token(4, special=True, normalized=False)}
    (tmp_path / "tokenizer.json").write_text("{")
    assert Vocabulary.read(tmp_path) is None
    assert "cannot be read" in caplog.text
