"""Rows of data files, and files that are refused."""

from pathlib import Path

import pytest

from dem_hub.errors import ConfigError
from dem_hub.evaluation.rows import read_rows


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
