"""The study: intervals, costs, and a report that says what its data say."""

import json
from pathlib import Path

import pytest

from studies.data_mixing import costs, report, scores, settings

REPORT = Path(__file__).parents[2] / "studies" / "data_mixing" / "report"


def test_a_difference_that_is_the_same_everywhere_has_no_width() -> None:
    """Distributions count alike, documents by their tokens."""
    first, second = {"a": [1.5, 2.5, 5.0], "b": [3.0], "c": [9.0]}, {"a": [1.0, 2.0, 4.5], "b": [2.0], "c": [0.0]}
    found = scores.difference(first, second, {"a": [9, 1, 5], "b": [7], "c": [1]}, ["a", "b"], 0)
    assert found == pytest.approx((0.75, 0.75, 0.75))


def test_costs() -> None:
    cost = costs.Cost
    together = costs.total([cost(10, 1), cost(0, 5)])
    assert together == cost(10, 6)
    assert together.flops(100) == 100 * (6 * 10 + 2 * 6)
    assert costs.cheaper(cost(0, 3), cost(10, 0)) == pytest.approx(0.9)


def test_the_page_is_written_from_the_data() -> None:
    data = json.loads((REPORT / "report.json").read_text("utf-8"))
    assert report.to_markdown(data) == (REPORT / "report.md").read_text("utf-8")
    assert data["settings"] == json.loads(json.dumps(settings.FULL.to_dict()))


def test_what_the_study_promises() -> None:
    """DEM beats uniform averaging for sure, and trying coefficients costs at most 9 % of trying as many mixtures."""
    data = json.loads((REPORT / "report.json").read_text("utf-8"))
    assert data["intervals"]["1/N"][1] > 0
    spent = report.costs_of(data)
    for search in ("search, as many candidates as mixtures", "search"):
        assert 1 - costs.cheaper(spent[search], spent["tuned mixture"]) <= 0.09
