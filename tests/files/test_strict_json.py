"""Versions, keys and values that a file may not have are refused, and the same data is always written as the same bytes."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from dem_hub.errors import ConfigError
from dem_hub.files.foreign_names import check_inside
from dem_hub.files.strict_json import LARGEST_FILE, check_version, dump_json, parse_json, read_json, read_record


@dataclass(frozen=True)
class Record:
    name: str
    size: int = 0

    def __post_init__(self) -> None:
        check_inside(self.name, "name of a record")


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (None, "format_version None"),
        (0, "format_version 0"),
        (True, "format_version True"),
        (1.0, "format_version 1.0"),
        ("1", "format_version '1'"),
        (2, "Upgrade: pip install"),
    ],
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
        ({"name": "a\0b"}, "may not contain control characters"),
        ({"name": "a" * 5000}, "it has 5000 characters, and 4096 are allowed"),
        ({"name": None}, "x.json has name None, which is not a text"),
        ({"name": "a", "size": "2"}, "x.json has size '2', which is not a whole number"),
        ({"name": "a", "size": True}, "x.json has size True, which is not a whole number"),
        ({"name": "a", "size": 2.0}, "x.json has size 2.0, which is not a whole number"),
    ],
)
def test_refused_records(data: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_record(Record, data, "x.json")


@pytest.mark.parametrize("text", ["", "{", b"\xff", "[" * 100_000])
def test_no_json(text: str | bytes) -> None:
    with pytest.raises(ConfigError, match="x.json is not JSON"):
        parse_json(text, "x.json")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("NaN", "x.json: NaN is not a number of JSON"),
        ("-Infinity", "x.json: -Infinity is not a number of JSON"),
        ("1e999", "x.json: the number 1e999 is out of range; the largest is 1.8e308"),
        (str(10**400), "x.json: the number 10{59} is out of range; whole numbers have 64 bits"),
        ("1" + "0" * 5000, "is out of range"),
        (str(1 << 64), "is out of range"),
        (str(-(1 << 63) - 1), "is out of range"),
        ('{"b": 1, "b": 1}', "x.json: the key 'b' occurs twice"),
        ("[" * 70 + "]" * 70, "x.json is nested more than 64 deep"),
        ('"\\ud800"', r"x.json has the text '\\ud800', which is not Unicode"),
        ('{"\\udfff": 1}', "which is not Unicode"),
        (f'"{"a" * 1_000_001}"', "x.json has a text of 1000001 characters, 'a{59}..., and 1,000,000 are allowed"),
    ],
)
def test_out_of_bounds(value: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        parse_json(f'{{"a": [{value}]}}', "x.json")
    assert len(str(error.value)) < 300


@pytest.mark.parametrize("value", [1 << 64, -(1 << 63), 1.7e308, 5e-324, "\u20ac \U0001f600", [[[]]], None, True])
def test_within_bounds(value: object) -> None:
    value = value - 1 if value == 1 << 64 else value  # type: ignore[operator]
    assert parse_json(json.dumps({"a": value}), "x.json") == {"a": value}


def test_formats_of_others_are_read_as_they_read_them() -> None:
    text = f'{{"time_step_limit": [0.0, Infinity], "max_length": {10**30}, "a": 1, "a": 2}}'
    assert parse_json(text, "x.json", foreign=True) == json.loads(text)
    assert parse_json('{"value": Infinity}', "x.json", non_finite=True) == {"value": float("inf")}


def test_too_large_a_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # a sparse file, which takes no room
    with pytest.raises(ConfigError, match=f"x.json is larger than {LARGEST_FILE:,} bytes"):
        read_json(path)


def test_no_object() -> None:
    with pytest.raises(ConfigError, match="x.json is list, not a JSON object"):
        parse_json("[1]", "x.json")


def test_written_in_one_form() -> None:
    assert dump_json({"b": [1], "a": {"d": None, "c": "é"}}) == (
        '{\n  "a": {\n    "c": "\\u00e9",\n    "d": null\n  },\n  "b": [\n    1\n  ]\n}\n'
    )
