"""Names, versions and keys that a file may not have are refused, and the same data is always written as the same bytes."""

from dataclasses import dataclass

import pytest

from dem_hub.errors import ConfigError
from dem_hub.files.strict_json import check_inside, check_version, dump_json, parse_json, read_record


@dataclass(frozen=True)
class Record:
    name: str
    size: int = 0

    def __post_init__(self) -> None:
        check_inside(self.name, "name of a record")


@pytest.mark.parametrize("name", ["a", "a/b.json", "a..b", "a/b:c"])
def test_names_inside(name: str) -> None:
    check_inside(name, "file")


@pytest.mark.parametrize("name", ["/a", "..", "a/../b", "a\\b", "C:/a", "hf://a"])
def test_names_outside(name: str) -> None:
    with pytest.raises(ConfigError, match="The file is '.*'; names must be relative"):
        check_inside(name, "file")


def test_what_is_no_name() -> None:
    with pytest.raises(ConfigError, match="The file is 3, which is not a name"):
        check_inside(3, "file")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "format_version None"), (0, "format_version 0"), ("1", "format_version '1'"), (2, "Upgrade: pip install")],
)
def test_versions(version: object, message: str) -> None:
    check_version({"format_version": 1}, "x.json")
    with pytest.raises(ConfigError, match=f"x.json has .*{message}|{message}"):
        check_version({"format_version": version}, "x.json")


def test_a_record() -> None:
    assert read_record(Record, {"name": "a", "size": 2}, "x.json") == Record("a", 2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "x.json is list, not a JSON object"),
        ({"name": "a", "color": 1}, "x.json has unknown key 'color'; format version 1 has name, size"),
        ({"name": "a", "b": 1, "a": 1}, "unknown keys 'a', 'b'"),
        ({}, "x.json is incomplete: missing 1 required positional argument: 'name'"),
        ({"name": "../a"}, "x.json: The name of a record is '../a'"),
    ],
)
def test_refused_records(data: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_record(Record, data, "x.json")


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[" * 100_000])
def test_no_json(text: str | bytes) -> None:
    with pytest.raises(ConfigError, match="x.json is not JSON"):
        parse_json(text, "x.json")


def test_no_object() -> None:
    with pytest.raises(ConfigError, match="x.json is list, not a JSON object"):
        parse_json("[1]", "x.json")


def test_written_in_one_form() -> None:
    assert dump_json({"b": [1], "a": {"d": None, "c": "é"}}) == (
        '{\n  "a": {\n    "c": "\\u00e9",\n    "d": null\n  },\n  "b": [\n    1\n  ]\n}\n'
    )
