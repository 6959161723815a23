"""Is what was found better than what anyone would have tried? Decided on data that the search never saw, pair by pair.

Two models on the same tokens differ far less than either varies from text to text, so what is compared is the difference, document by
document. A rival that is better by more than that difference's standard error takes the place of what was found.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dem_hub.search.cross_loss import BASE, standard_error
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from dem_hub.search.points import Point
from dem_hub.search.solve.line_search import lowest
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.region import Region, common_bounds

FOUND, UNIFORM, COMMON, BEFORE = "found", "1/N", "common", "before"
INDEPENDENT = 10  # tokens of text that count as one independent one; 10 to 20 were measured


@dataclass(frozen=True)
class Contender:
    """A model on held-out data: its losses and objective, how much worse it is than what was found, and that difference's error."""

    coefficients: Point
    losses: Mapping[str, float]
    value: float
    difference: float
    error: float


@dataclass(frozen=True)
class Acceptance:
    """Everyone's results on held-out data, what was found first; `chosen` is the label of the one to use."""

    chosen: str
    contenders: Mapping[str, Contender]
    tokens: Mapping[str, int]

    @property
    def is_found(self) -> bool:
        """Whether what was found held."""
        return self.chosen == FOUND

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Acceptance":
        """Read what `to_dict` wrote."""
        contenders = {
            label: Contender(**{**entry, "coefficients": tuple(entry["coefficients"])})
            for label, entry in data["contenders"].items()
        }
        return cls(data["chosen"], contenders, data["tokens"])


def rivals(names: Sequence[str], common: Point | None, before: Point | None = None) -> dict[str, Point]:
    """The obvious points: the base, each vector alone, equal shares, the best common coefficient, and what there was before."""
    count = len(names)
    points = {BASE: (0.0,) * count}
    points |= {f"{name} alone": tuple(float(i == j) for j in range(count)) for i, name in enumerate(names)}
    points[UNIFORM] = (1 / count,) * count
    if common is not None:
        points[COMMON] = common
    if before is not None:
        points[BEFORE] = before
    return points


def common_of(held_out: LossEvaluator, objective: Objective, region: Region, guess: float) -> Point:
    """The best common coefficient, looked for on the held-out data itself: a rival is no rival where it is not at its best.

    It is no worse there than the base, equal shares, all vectors at 1, and `guess`, as far as these are in the region.
    """
    count = len(held_out.names)
    base = held_out.losses((0.0,) * count) if objective.kind == "improvement" else None
    starts = [0.0, 1 / count, 1.0, guess]  # the first two are rivals too, and are scored once
    return (
        lowest(
            lambda level: _value(objective, held_out.losses((level,) * count), base), starts, *common_bounds(region)
        ),
    ) * count


def accept(held_out: LossEvaluator, objective: Objective, found: Point, others: Mapping[str, Point]) -> Acceptance:
    """Compare on held-out data.

    Args:
        held_out ([`LossEvaluator`]): on data that the search did not see.
        objective ([`Objective`]): the search's.
        found (`tuple[float, ...]`): what it found.
        others (`Mapping[str, tuple[float, ...]]`): what it must not be worse than; see [`rivals`].

    Returns:
        [`Acceptance`]: what was found is chosen unless another is better by more than the standard error of the difference; then the
            best of those is. The common coefficient, which was fitted to this very data, must be better by what that is expected to
            gain as well.
    """
    base = held_out.losses((0.0,) * len(found)) if objective.kind == "improvement" else None
    mine = held_out.window_totals(found)
    slope = objective.slope(held_out.losses(found), base).tolist()
    contenders = {}
    for label, point in {FOUND: found, **others}.items():
        losses = held_out.losses(point)
        totals = held_out.window_totals(point)
        errors = [standard_error(totals[name] - mine[name], held_out, name) for name in losses]
        error = math.sqrt(
            sum(
                (factor * each) ** 2
                for factor, each in zip(slope, errors, strict=True)
                if factor and not math.isnan(each)
            )
        )
        value = _value(objective, losses, base)
        contenders[label] = Contender(point, losses, value, value, error)
    reference = contenders[FOUND].value
    contenders = {label: _against(contender, reference) for label, contender in contenders.items()}
    fitted = {COMMON: expected_excess(sum(map(sum, held_out.tokens.values())), 1)}
    better = [
        label
        for label, contender in contenders.items()
        if not contender.difference >= -(contender.error + fitted.get(label, 0.0))
    ]
    chosen = min(better, key=lambda label: contenders[label].value) if better else FOUND
    return Acceptance(chosen, contenders, {name: sum(tokens) for name, tokens in held_out.tokens.items()})


def _value(objective: Objective, losses: Mapping[str, float], base: Mapping[str, float] | None) -> float:
    return objective.value(losses, base) if all(map(math.isfinite, losses.values())) else math.inf


def _against(contender: Contender, reference: float) -> Contender:
    difference = contender.value - reference
    return Contender(contender.coefficients, contender.losses, contender.value, difference, contender.error)


def expected_excess(tokens: int, coefficients: int) -> float:
    """How far above the best the fitted coefficients' loss is on average, in nats; the loss that they are fitted to is as far below it.

    Source: Wilks; half a degree of freedom per independent token, of which [`INDEPENDENT`] tokens make one.
    """
    return coefficients * INDEPENDENT / (2 * max(tokens, 1))
