"""Records as JSON and back, by the types of their fields."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor

from dem_hub.errors import ConfigError
from dem_hub.search.records import from_json, to_json


@dataclass(frozen=True)
class Inner:
    name: str
    value: float


@dataclass(frozen=True)
class Outer:
    kind: Literal["a", "b"]
    pair: tuple[int, float]
    inner: tuple[Inner, ...]
    by_name: Mapping[str, float | Mapping[str, float]]
    matrix: Tensor
    missing: Inner | None = None


DATA: dict[str, Any] = {
    "kind": "b",
    "pair": [1, 0.5],
    "inner": [{"name": "x", "value": 1}, {"name": "y", "value": float("inf")}],
    "by_name": {"one": 0.1, "many": {"mlp": 0.2}},
    "matrix": [[1.0, 2.0], [0.1, 4.0]],
    "missing": None,
}


def test_there_and_back() -> None:
    outer = from_json(Outer, DATA, "file")
    assert outer.pair == (1, 0.5)
    assert outer.inner == (Inner("x", 1), Inner("y", float("inf")))
    assert outer.by_name == {"one": 0.1, "many": {"mlp": 0.2}}
    assert torch.equal(outer.matrix, torch.tensor(DATA["matrix"], dtype=torch.float64))
    assert to_json(outer) == DATA
    assert list(to_json(outer)) == list(DATA)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "c"}, "file, kind is 'c'; it must be one of 'a', 'b'"),
        ({"pair": [1]}, "file, pair has 1 entries; it must have 2"),
        ({"pair": 1}, "file, pair is 1, not a list"),
        ({"pair": [1.5, 0.5]}, "file, pair is 1.5, not of type int"),
        ({"pair": [1, True]}, "file, pair is True, not of type float"),
        ({"inner": [{"name": "x"}]}, "file, inner is incomplete"),
        ({"inner": [{"name": "x", "value": 1, "more": 2}]}, "file, inner has unknown key 'more'"),
        ({"by_name": {"many": {"mlp": "0.2"}}}, "file, by_name, many, mlp is '0.2', not of type float"),
        ({"matrix": [[1.0], [2.0, 3.0]]}, "file, matrix is no array of numbers"),
        ({"missing": []}, "file, missing is list, not a JSON object"),
        ({"more": 1}, "file has unknown key 'more'"),
    ],
)
def test_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_json(Outer, {**DATA, **changes}, "file")
