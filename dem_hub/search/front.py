"""The Pareto front of two distributions: mixtures that no other is expected to beat on both.

It is solved from the quadratics that a search keeps, for many weights of the two distributions.
"""

from dataclasses import dataclass

from dem_hub.search.points import Point
from dem_hub.search.prediction import UNSURE, Prediction
from dem_hub.search.solve.newton import best_point
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.region import Region

# Weights that are tried, from one distribution alone to the other. Chosen by hand: the line looks smooth.
_WEIGHTS = 41


@dataclass(frozen=True)
class FrontPoint:
    """A mixture of the front, the losses to expect of it on the two distributions, and whether these are rough."""

    coefficients: Point
    losses: tuple[float, float]
    is_rough: bool


def front(prediction: Prediction, first: str, second: str) -> list[FrontPoint]:
    """Return the mixtures of the front, from the best for the first distribution to the best for the second.

    Args:
        prediction ([`Prediction`]): What a search knows.
        first, second (`str`): The distributions.
    """
    region = Region.of(prediction.result.bounds, prediction.result.max_sum)
    points: list[FrontPoint] = []
    for number in range(_WEIGHTS):
        share = number / (_WEIGHTS - 1)
        weights = dict.fromkeys(prediction.model.parts, 0.0) | {first: 1 - share, second: share}
        point = tuple(best_point(prediction.model, Objective("mean", weights), region).tolist())
        expected = prediction.losses(point)
        errors = [expected[name].error for name in (first, second)]
        is_rough = any(error is None or error > UNSURE for error in errors)
        points.append(FrontPoint(point, (expected[first].loss, expected[second].loss), is_rough))
    return [point for point in points if not any(_beats(other, point) for other in points)]


def _beats(first: FrontPoint, second: FrontPoint) -> bool:
    """Return whether the first point is as good on both distributions, and better on one."""
    pairs = list(zip(first.losses, second.losses, strict=True))
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
