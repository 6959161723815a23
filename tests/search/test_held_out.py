"""The answer is accepted on data the search did not see, or the best of the obvious is returned."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from dem_hub.evaluation.windows import Window
from dem_hub.search.held_out import (
    INDEPENDENT,
    Acceptance,
    accept,
    baseline_points,
    best_common_point,
    expected_excess,
    needed_errors,
)
from dem_hub.search.records import from_json, to_json
from dem_hub.search.solve.line_search import LEAST_GAIN
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.region import Region


class HeldOut:
    """Losses by point, with noise from document to document that all points share."""

    def __init__(self, losses: dict[tuple[float, ...], float], own_noise: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shared = torch.randn(50, generator=generator, dtype=torch.float64)
        self.own = {point: own_noise * torch.randn(50, generator=generator, dtype=torch.float64) for point in losses}
        self.means = losses
        self.data = {"maths": [Window((), (), document) for document in range(50)]}
        self.tokens = {"maths": [10] * 50}

    def window_totals(self, point: Sequence[float]) -> dict[str, Tensor]:
        own = self.own[tuple(point)]
        return {"maths": 10 * (self.means[tuple(point)] + self.shared - self.shared.mean() + own - own.mean())}

    def losses(self, point: Sequence[float]) -> dict[str, float]:
        return {name: float(values.sum()) / 500 for name, values in self.window_totals(point).items()}


BASE, SINGLE, UNIFORM, FOUND = (0.0, 0.0), (1.0, 0.0), (0.5, 0.5), (0.4, 0.7)


def judged(found: float, uniform: float, own_noise: float = 0.0) -> Acceptance:
    held: Any = HeldOut({BASE: 3.0, SINGLE: 2.9, UNIFORM: uniform, FOUND: found}, own_noise)
    return accept(held, Objective(), FOUND, {"base": BASE, "a alone": SINGLE, "1/N": UNIFORM})


@pytest.mark.parametrize(
    ("found", "uniform", "noise", "chosen"),
    [
        (2.0, 2.1, 0.0, "found"),
        (2.1, 2.0, 0.0, "1/N"),
        (2.001, 2.0, 0.5, "found"),  # better by chance, for all anyone can tell
        (2.5, 2.0, 0.5, "1/N"),
        (3.5, 3.2, 0.0, "a alone"),
        (float("nan"), 2.0, 0.0, "1/N"),
    ],
)
def test_who_is_chosen(found: float, uniform: float, noise: float, chosen: str) -> None:
    accepted = judged(found, uniform, noise)
    assert accepted.chosen == chosen
    assert accepted.is_found is (chosen == "found")
    assert list(accepted.contenders) == ["found", "base", "a alone", "1/N"]


def test_differences_are_paired() -> None:
    """What all models share from document to document, a hundred times their difference, does not count."""
    accepted = judged(2.0, 2.1)
    assert accepted.contenders["1/N"].difference == pytest.approx(0.1)
    assert accepted.contenders["1/N"].error < 1e-9
    noisy = judged(2.0, 2.1, 0.5)
    assert noisy.contenders["1/N"].error == pytest.approx(0.5 * 2**0.5 / 50**0.5, rel=0.3)


@pytest.mark.parametrize(("gain", "chosen"), [(0.4, "found"), (2.0, "common")])
def test_what_was_fitted_to_the_data_must_be_better_by_more(gain: float, chosen: str) -> None:
    """One coefficient fitted to 500 tokens is expected to look better by a hundredth of a nat; what was fitted to others is not."""
    better = gain * expected_excess(500, 1)
    held: Any = HeldOut({FOUND: 2.0, SINGLE: 2.0 - better})
    assert accept(held, Objective(), FOUND, {"common": SINGLE}).chosen == chosen
    assert accept(held, Objective(), FOUND, {"a alone": SINGLE}).chosen == "a alone"


def test_as_json() -> None:
    accepted = judged(2.0, 2.1)
    data = to_json(accepted)
    assert from_json(Acceptance, data, "acceptance") == accepted
    del data["errors"]  # as in files from before the number of rivals counted
    assert from_json(Acceptance, data, "acceptance").errors == 1.0


@pytest.mark.parametrize("rivals", [1, 3, 9])
@pytest.mark.parametrize("units", [2, 8, 50])
def test_needed_errors_are_those_of_students_t(rivals: int, units: int) -> None:
    expected = stats.t.isf(0.05 / rivals, units - 1)
    assert needed_errors(rivals, units) == pytest.approx(expected, rel=1e-3)
    assert needed_errors(rivals, units) >= expected


def test_rivals_that_are_no_better_are_seldom_returned() -> None:
    """Of six that are all equal to the answer, with noise of their own: at most 5 %, and 1.5 % for the chance of 500 tries."""
    replaced = 0
    for seed in range(500):
        held: Any = HeldOut({(float(place),): 2.0 for place in range(7)})
        generator = torch.Generator().manual_seed(seed)
        noise = {point: torch.randn(50, generator=generator, dtype=torch.float64) for point in held.means}
        held.window_totals = lambda point, noise=noise: {"maths": 10 * (2.0 + noise[tuple(point)])}
        others = {str(place): (float(place),) for place in range(1, 7)}
        replaced += not accept(held, Objective(), (0.0,), others).is_found
    assert 0 < replaced <= 0.065 * 500


def test_one_window_decides_nothing() -> None:
    held: Any = HeldOut({FOUND: 2.1, UNIFORM: 2.0})
    held.data = {"maths": [Window((), (), 0)]}
    held.tokens = {"maths": [10]}
    held.window_totals = lambda point: {"maths": torch.tensor([10 * held.means[tuple(point)]], dtype=torch.float64)}
    accepted = accept(held, Objective(), FOUND, {"1/N": UNIFORM})
    assert accepted.is_found
    assert "has no standard error" in accepted.note()
    held.means[FOUND] = float("inf")
    assert accept(held, Objective(), FOUND, {"1/N": UNIFORM}).chosen == "1/N"


def test_the_note_says_what_decided() -> None:
    assert "'1/N' is better than what was found by 0.5000 nats" in judged(2.5, 2.0, 0.5).note()
    assert (
        "more than 2.19 standard errors (5% by chance, for 3 rivals), and is what is returned"
        in judged(2.5, 2.0, 0.5).note()
    )
    assert judged(2.001, 2.0, 0.5).note().endswith("(5% by chance, for 3 rivals). Too close to tell apart: 1/N.")
    assert judged(2.001, 2.0, 0.5).note(str.lower).endswith("Too close to tell apart: 1/n.")


class Along:
    """Losses of two vectors with one coefficient for both, which counts how often it is asked for a new one."""

    names = ("a", "b")

    def __init__(self, **losses: Callable[[float], float]) -> None:
        self.functions, self.seen = losses, set[float]()

    def losses(self, point: Sequence[float]) -> dict[str, float]:
        assert len(set(point)) == 1
        self.seen.add(point[0])
        return {name: function(point[0]) for name, function in self.functions.items()}


ASK = Along(maths=lambda c: 2.0 + (c - 0.75) ** 2 + 4 * max(c - 0.9, 0) ** 2, chat=lambda c: 3.0 + (c - 0.75) ** 4)


@pytest.mark.parametrize("guess", [0.2, 0.75, 1.1, 1.5])
@pytest.mark.parametrize("kind", ["mean", "worst", "improvement"])
def test_the_best_common_coefficient(kind: Any, guess: float) -> None:
    """At 0.75, wherever the search's statistics see it; the base and 1/N are scored anyway."""
    held: Any = Along(**ASK.functions)
    objective = Objective(kind)
    region = Region.of([(0.0, 1.5)] * 2)
    common = best_common_point(held, objective, region, guess)
    base = held.losses((0.0, 0.0))

    def value(level: float) -> float:
        return objective.value(held.losses((level, level)), base)

    asked = len(held.seen)
    assert set(common) == {common[0]}
    assert value(common[0]) <= value(0.75) + 5 * LEAST_GAIN
    assert all(value(common[0]) <= value(level) for level in (0.0, 0.5, 1.0, guess))
    assert asked <= 2 + 9


def test_the_best_common_coefficient_of_a_region() -> None:
    held: Any = Along(**ASK.functions)
    assert best_common_point(held, Objective(), Region.of([(0.0, 1.5), (0.0, 0.5)]), 1.1) == (0.5, 0.5)
    assert best_common_point(held, Objective(), Region.of([(0.0, 1.5)] * 2, max_sum=0.6), 1.1) == (0.3, 0.3)
    assert best_common_point(held, Objective(), Region.of([(0.9, 1.5)] * 2), 1.1) == (0.9, 0.9)
    assert max(held.seen) <= 1.5


def test_a_common_coefficient_that_diverges() -> None:
    """No number is worse than any, also where it is not the largest loss by its order."""
    held: Any = Along(maths=lambda c: (c - 0.75) ** 2, chat=lambda c: 0.0 if c < 0.9 else float("nan"))
    assert best_common_point(held, Objective("worst"), Region.of([(0.0, 1.5)] * 2), 1.1)[0] == pytest.approx(
        0.75, abs=0.02
    )


def test_baseline_points() -> None:
    assert baseline_points(("a", "b"), (0.3, 0.3), (0.1, 0.0)) == {
        "base": BASE, "a alone": SINGLE, "b alone": (0.0, 1.0), "1/N": UNIFORM, "common": (0.3, 0.3), "before": (0.1, 0.0),
    }  # fmt: skip
    assert list(baseline_points(("a",), None)) == ["base", "a alone", "1/N"]


def test_expected_excess() -> None:
    """Wilks: fitted means of unit Gaussians are half a squared standard error each above the truth."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2000, 4, 100, generator=generator).mean(-1)
    assert expected_excess(100 * INDEPENDENT, 4) == pytest.approx(float((means**2).sum(1).mean()) / 2, rel=0.1)
