"""The study: intervals, costs, and a report that says what its data say."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

STUDY = Path(__file__).parents[2] / "examples" / "study"
REPORT = STUDY / "report"


@pytest.fixture(scope="module")
def study() -> Iterator[dict[str, ModuleType]]:
    """The study's own modules, imported as its command imports them."""
    before = set(sys.modules)
    sys.path.insert(0, str(STUDY))
    try:
        yield {name: __import__(name) for name in ("costs", "report", "scores", "settings")}
    finally:
        sys.path.remove(str(STUDY))
        for name in set(sys.modules) - before:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(STUDY)):
                del sys.modules[name]


def test_a_difference_that_is_the_same_everywhere_has_no_width(study: dict[str, ModuleType]) -> None:
    """Distributions count alike, documents by their tokens."""
    first, second = {"a": [1.5, 2.5, 5.0], "b": [3.0], "c": [9.0]}, {"a": [1.0, 2.0, 4.5], "b": [2.0], "c": [0.0]}
    found = study["scores"].difference(first, second, {"a": [9, 1, 5], "b": [7], "c": [1]}, ["a", "b"], 0)
    assert found == pytest.approx((0.75, 0.75, 0.75))


def test_costs(study: dict[str, ModuleType]) -> None:
    cost = study["costs"].Cost
    together = study["costs"].total([cost(10, 1), cost(0, 5)])
    assert together == cost(10, 6)
    assert together.flops(100) == 100 * (6 * 10 + 2 * 6)
    assert study["costs"].cheaper(cost(0, 3), cost(10, 0)) == pytest.approx(0.9)


def test_the_page_is_written_from_the_data(study: dict[str, ModuleType]) -> None:
    data = json.loads((REPORT / "report.json").read_text("utf-8"))
    assert study["report"].to_markdown(data) == (REPORT / "report.md").read_text("utf-8")
    assert data["settings"] == json.loads(json.dumps(study["settings"].FULL.to_dict()))


def test_what_the_study_promises(study: dict[str, ModuleType]) -> None:
    """DEM beats uniform averaging for sure, and trying coefficients costs at most 9 % of trying as many mixtures."""
    data = json.loads((REPORT / "report.json").read_text("utf-8"))
    assert data["intervals"]["1/N"][1] > 0
    costs = study["report"].costs_of(data)
    for search in ("search, as many candidates as mixtures", "search"):
        assert 1 - study["costs"].cheaper(costs[search], costs["tuned mixture"]) <= 0.09
