"""YAML is read as PyYAML reads it, or refused: what stands for too much, contains itself, or says a thing twice."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from dem_hub.errors import ConfigError
from dem_hub.files.strict_yaml import read_yaml

# Nine levels of nine aliases each: 400 bytes for 387 million values.
LISTS = "a0: &a0 [1]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
# The same of merged keys, which PyYAML copies for each use.
MERGED = "a0: &a0 {x: 1}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10))


def read(text: str, folder: Path) -> Any:
    path = folder / "file.yml"
    path.write_text(text)
    return read_yaml(path)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a: 1\nb: [1.5, yes, null, 'x', 2020-01-01]",
        "first: &shared {a: 1}\nsecond: *shared\nthird: [*shared, *shared]",
        "shared: &shared {a: 1, b: 2}\nown: {<<: *shared, a: 3}",
        "1: a\n'1': b",
    ],
)
def test_as_pyyaml_reads_it(text: str, tmp_path: Path) -> None:
    assert read(text, tmp_path) == yaml.safe_load(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (LISTS, "stands for more than 200,000 values"),
        (MERGED, "stands for more than 200,000 values"),
        ("a: &a [*a]", "contains itself"),
        ("a: &a {b: {c: *a}}", "contains itself"),
        ("[" * 3000 + "]" * 3000, "is not YAML"),
        ("a: 1\nb: 2\na: 3", "the key 'a' occurs twice"),
        ("x: [{b: {a: 1, 'a': 2}}]", "the key 'a' occurs twice"),
        ("a: " + "1" * 5000, "is not YAML"),
        ("a: " + "x" * 10_001, "10,001 characters"),
        ("a: 2020-13-45", "is not YAML"),
        ('a: "\\ud800"', "half a character"),
        ("a: !!python/object/apply:os.system [ls]", "is not YAML"),
        ("a: 1\n--- \nb: 2", "is not YAML"),
        ("# " + "x" * 1_000_000, "larger than 1,000,000 bytes"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else None,
)
def test_what_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        read(text, tmp_path)
    assert words in str(refusal.value)
    assert "file.yml" in str(refusal.value)
    assert len(str(refusal.value)) < 1000


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "file.yml").write_bytes(b"a: \xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not YAML"):
        read_yaml(tmp_path / "file.yml")
