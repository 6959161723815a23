"""Losses to one number, and its derivative."""

import pytest

from dem_hub.errors import ConfigError
from dem_hub.search.solve.objective import Objective

LOSSES, BASE = {"a": 1.0, "b": 3.0, "c": 2.0}, {"a": 2.0, "b": 4.0, "c": 2.0}


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        (Objective(), 2.0),
        (Objective("mean", {"a": 0.0}), 2.5),
        (Objective("mean", {"a": 2.0, "b": 1.0, "c": 1.0}), 7 / 4),
        (Objective("worst"), 3.0),
        (Objective("worst", {"b": 0.1}), 2.0),
        (Objective("improvement"), (0.5 + 0.75 + 1) / 3),
        (Objective("improvement", {"c": 0.0}), (0.5 + 0.75) / 2),
    ],
)
def test_value_and_slope(objective: Objective, value: float) -> None:
    assert objective.value(LOSSES, BASE) == pytest.approx(value)
    slope = objective.slope(LOSSES, BASE).tolist()
    for place, name in enumerate(LOSSES):
        more = objective.value(LOSSES | {name: LOSSES[name] + 1e-6}, BASE)
        assert slope[place] == pytest.approx((more - objective.value(LOSSES, BASE)) / 1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Objective("best"), "objective is 'best'; it must be one of mean, worst, improvement"),  # type: ignore[arg-type]
        (lambda: Objective("mean", {"a": -1.0}), r"weights are {'a': -1.0}; they must be finite and not negative"),
        (lambda: Objective("mean", {"d": 1.0}).value(LOSSES), "weights name 'd'; the distributions are 'a', 'b', 'c'"),
        (lambda: Objective("mean", dict.fromkeys(LOSSES, 0.0)).value(LOSSES), "are all 0"),
    ],
)
def test_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()  # type: ignore[operator]
