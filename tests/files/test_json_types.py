"""JSON data is of the type that an annotation says, or it is not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest

from dem_hub.files.json_types import fits


@dataclass(frozen=True)
class Record:
    name: str


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (int, [0, -1], [True, 1.0, "1", None, [1]]),
        (float, [0, 1.5], [True, "1", None]),
        (str, ["", "a"], [1, None, ["a"]]),
        (bool, [True], [1, "true", None]),
        (str | None, ["a", None], [1, False]),
        (tuple[int, ...], [[], [1], (1, 2)], [1, "12", [1.5], [True], {"1": 1}]),
        (tuple[int, str], [[1, "a"]], [[1], ["a", 1], [1, "a", "b"]]),
        (list[str], [["a"]], ["a", [1], {"a": 1}]),
        (Mapping[str, float], [{}, {"a": 1}], [[], {"a": "1"}, {"a": None}, {1: 1}]),
        (float | Mapping[str, float], [1, {"a": 1}], ["1", [1], {"a": {}}]),
        (Literal["a", 1], ["a", 1], [True, 1.0, "b", []]),
        (Mapping[str, Any], [{"a": [{}]}], [[], "a"]),
        (Record, [Record("a")], [{"name": "a"}, None]),
    ],
)
def test_types(kind: Any, good: list[object], bad: list[object]) -> None:
    assert [value for value in good if not fits(kind, value)] == []
    assert [value for value in bad if fits(kind, value)] == []
