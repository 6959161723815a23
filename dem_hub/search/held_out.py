"""Acceptance of a search's answer: compare it with baselines on data that the search never saw.

Two models on the same tokens differ far less than either varies from text to text. So the losses are subtracted
document by document, and the standard error is that of the difference. A baseline replaces the answer if it is better
by more standard errors than chance lets any of so many rivals reach in 5 % of all searches. So a search never returns
something that is clearly worse than what a user would have tried without it, and seldom something worse than what it
found. `benchmarks/acceptance.py` counts how seldom.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from dem_hub.errors import ConfigError
from dem_hub.evaluation.standard_errors import count_units, student_quantile
from dem_hub.search.cross_loss import BASE, standard_error
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from dem_hub.search.points import Point, all_at, alone, each_alone
from dem_hub.search.solve.line_search import lowest
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.region import Region, common_bounds

# Labels of the contenders. They are keys of search_result.json and must stay as they are.
FOUND = "found"
UNIFORM = "1/N"
COMMON = "common"
BEFORE = "before"

# What people read in the place of labels that say too little to whoever sees them for the first time.
DEM = "DEM"
IN_WORDS = {FOUND: DEM, COMMON: "best common coefficient", BEFORE: "earlier result"}

# Tokens of text that count as one independent token, since the tokens of a document are alike. On a model of 0.12
# million parameters the excess loss of fitted coefficients was at most 1.7 times that of independent tokens on text
# of one kind, and 7 to 18 times on text of several kinds.
INDEPENDENT = 10


# Probability, at most, that a rival which is no better than the answer replaces it: the usual level of a test.
LEVEL = 0.05


@dataclass(frozen=True)
class Measured:
    """A model that has been run over the held-out data.

    `losses` are the mean losses of a token in nats, and `totals`, (windows,) in float64, the negative log-likelihoods
    of all windows, both by distribution.
    """

    point: Point
    losses: Mapping[str, float]
    totals: Mapping[str, Tensor]

    @classmethod
    def at(cls, evaluator: LossEvaluator, point: Point) -> "Measured":
        """Return what an evaluator measures at a point."""
        return cls(point, evaluator.losses(point), evaluator.window_totals(point))


@dataclass(frozen=True)
class Contender:
    """A model on the held-out data.

    `losses` are the mean losses of a token in nats, by distribution, and `value` is their objective. `difference`
    is the value minus that of the search's answer, and `error` the standard error of this difference. `errors` are
    the standard errors of the losses minus those of the answer.
    """

    coefficients: Point
    losses: Mapping[str, float]
    value: float
    difference: float
    error: float
    # Files from before pictures needed them have none.
    errors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Acceptance:
    """The comparison on held-out data.

    `chosen` is the label of the contender to use, `contenders` begins with the search's answer, and `tokens` are
    the scored tokens of each distribution. `errors` are the standard errors by which a rival must be better than the
    answer.
    """

    chosen: str
    contenders: Mapping[str, Contender]
    tokens: Mapping[str, int]
    # Files from before the number of rivals counted have none.
    errors: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a choice of something that is not there."""
        if self.chosen not in self.contenders:
            raise ConfigError(f"'{self.chosen}' is chosen and is none of {', '.join(map(repr, self.contenders))}.")

    @property
    def is_found(self) -> bool:
        """True if the search's answer is the one to use."""
        return self.chosen == FOUND

    @property
    def limit(self) -> str:
        """The standard errors that decide, and what they are for."""
        rivals = len(self.contenders) - 1
        plural = "" if rivals == 1 else "s"
        return f"{self.errors:.2f} standard errors ({LEVEL:.0%} by chance, for {rivals} rival{plural})"

    def note(self, short: Callable[[str], str] = str) -> str:
        """Return which model is used and what decided that, for the user.

        Args:
            short (`Callable`, *optional*): Returns the label of a model as it is to be shown; by default as it is.
        """
        if self.is_found and math.isinf(self.errors):
            return "One window of held-out text has no standard error, so that what was found is returned."
        if self.is_found:
            alike = [short(label) for label, other in self.contenders.items() if self._is_alike(label, other)]
            text = f"On held-out data no other is better than what was found by more than {self.limit}."
            if alike:
                text += f" Too close to tell apart: {', '.join(alike)}."
            return text
        chosen = self.contenders[self.chosen]
        if not math.isfinite(self.contenders[FOUND].value):
            return f"What was found has no finite loss on held-out data, and '{short(self.chosen)}' is returned."
        return (
            f"On held-out data '{short(self.chosen)}' is better than what was found by {-chosen.difference:.4f} nats "
            f"(standard error {chosen.error:.4f}), more than {self.limit}, and is what is returned."
        )

    def _is_alike(self, label: str, other: Contender) -> bool:
        return label != FOUND and abs(other.difference) <= self.errors * other.error


def needed_errors(rivals: int, units: int) -> float:
    """Return by how many standard errors a rival must be better than the answer.

    Then one of several rivals that are no better is, by chance, with a probability of at most `LEVEL`, however alike
    the rivals are.

    Args:
        rivals (`int`): Number of rivals.
        units (`int`): Number of independent documents of the distribution with the fewest.

    Source: Bonferroni's inequality, with the quantiles of Student's t (Dunn, Multiple Comparisons Among Means, 1961).
    """
    return student_quantile(LEVEL / max(rivals, 1), units - 1)


def baseline_points(names: Sequence[str], common: Point | None, before: Point | None = None) -> dict[str, Point]:
    """Return the points that a user would try without a search, by label.

    Args:
        names (`Sequence[str]`): Names of the coefficients.
        common (`tuple[float, ...]`, *optional*): The best common coefficient, see [`best_common_point`].
        before (`tuple[float, ...]`, *optional*): The coefficients of an earlier search.

    Returns:
        `dict[str, tuple[float, ...]]`: The base, each vector alone, equal shares, and those of the two that are
        given.
    """
    count = len(names)
    points = {BASE: all_at(0.0, count)}
    for name, point in zip(names, each_alone(count), strict=True):
        points[alone(name)] = point
    points[UNIFORM] = all_at(1 / count, count)
    if common is not None:
        points[COMMON] = common
    if before is not None:
        points[BEFORE] = before
    return points


def usual_passes(count: int) -> int:
    """Return how many passes over the held-out data a comparison usually takes.

    They are those of the answer, the base, each vector alone and, for several vectors, 1/N and the best common
    coefficient: all of each, the guess, and three steps.
    """
    if count == 1:
        return 3
    return count + 8


def best_common_point(held_out: LossEvaluator, objective: Objective, region: Region, guess: float) -> Point:
    """Return the point with the same coefficient for all vectors that has the lowest objective on the held-out data.

    The coefficient is fitted to the held-out data itself, so that this baseline is as strong as possible. Its
    objective there is no higher than that of the base, of equal shares, of all vectors at 1, and of all vectors at
    `guess`, as far as these lie in the region.
    """
    count = len(held_out.names)
    base_losses = _base_losses(held_out, objective)

    def value_at(level: float) -> float:
        return _value(objective, held_out.losses(all_at(level, count)), base_losses)

    # The first two are baselines themselves, so that their passes over the data are made only once.
    starts = [0.0, 1 / count, 1.0, guess]
    return all_at(lowest(value_at, starts, *common_bounds(region)), count)


def accept(held_out: LossEvaluator, objective: Objective, found: Point, others: Mapping[str, Point]) -> Acceptance:
    """Compare the search's answer with other points on held-out data.

    Args:
        held_out ([`LossEvaluator`]): LossEvaluator of data that the search did not see.
        objective ([`Objective`]): Objective of the search.
        found (`tuple[float, ...]`): The search's answer.
        others (`Mapping[str, tuple[float, ...]]`): The points to compare it with, by label; see [`baseline_points`].

    Returns:
        [`Acceptance`]: The search's answer is chosen unless another point is better by more than [`needed_errors`]
            standard errors of the difference. Then the best of those is chosen. The common coefficient was fitted to
            this very data, and must in addition be better by the gain that is expected of that.
    """
    measured = {label: Measured.at(held_out, point) for label, point in {FOUND: found, **others}.items()}
    return accept_measured(held_out, objective, measured)


def accept_measured(held_out: LossEvaluator, objective: Objective, measured: Mapping[str, Measured]) -> Acceptance:
    """Compare the search's answer with other models that have been run over the held-out data; see [`accept`].

    Args:
        held_out ([`LossEvaluator`]): LossEvaluator of the held-out data.
        objective ([`Objective`]): Objective of the search.
        measured (`Mapping[str, Measured]`): The models by their labels; the search's answer is `FOUND`.
    """
    base_losses = _base_losses(held_out, objective)
    found = measured[FOUND]
    slope = objective.slope(found.losses, base_losses).tolist()
    contenders: dict[str, Contender] = {}
    for label, model in measured.items():
        errors = {}
        for name in model.losses:
            errors[name] = standard_error(model.totals[name] - found.totals[name], held_out, name)
        value = _value(objective, model.losses, base_losses)
        error = _combined_error(slope, list(errors.values()))
        contenders[label] = Contender(model.point, model.losses, value, value, error, errors)
    found_value = contenders[FOUND].value
    contenders = {
        label: replace(contender, difference=contender.value - found_value) for label, contender in contenders.items()
    }
    tokens = {name: sum(counts) for name, counts in held_out.tokens.items()}
    counting = [count_units(held_out.data[name]) for name, factor in zip(found.losses, slope, strict=True) if factor]
    needed = needed_errors(len(contenders) - 1, min(counting, default=0))
    return Acceptance(_choose(contenders, sum(tokens.values()), needed), contenders, tokens, needed)


def expected_excess(tokens: int, coefficients: int) -> float:
    """Return how far above the best loss the loss of fitted coefficients is on average, in nats.

    The loss on the data that they are fitted to is as far below the best.

    Source: Wilks; half a degree of freedom per independent token, of which [`INDEPENDENT`] tokens make one.
    """
    return coefficients * INDEPENDENT / (2 * max(tokens, 1))


def _choose(contenders: Mapping[str, Contender], tokens: int, errors: float) -> str:
    """Return the label of the best contender that beats the answer by more than chance, or that of the answer."""
    # An answer that is not finite is compared by its value: its differences are not numbers.
    is_finite = math.isfinite(contenders[FOUND].value)
    if is_finite and math.isinf(errors):
        return FOUND
    margins = dict.fromkeys(contenders, 0.0)
    if COMMON in margins:
        margins[COMMON] = expected_excess(tokens, 1)
    better = []
    for label, contender in contenders.items():
        if not is_finite or contender.difference < -(errors * contender.error + margins[label]):
            better.append(label)
    return min(better, key=lambda label: contenders[label].value, default=FOUND)


def _combined_error(slope: Sequence[float], errors: Sequence[float]) -> float:
    """Return the standard error of the objective from those of the losses; an error that is not known counts as 0."""
    squares = []
    for factor, error in zip(slope, errors, strict=True):
        if factor and not math.isnan(error):
            squares.append((factor * error) ** 2)
    return math.sqrt(sum(squares))


def _base_losses(held_out: LossEvaluator, objective: Objective) -> dict[str, float] | None:
    if objective.kind != "improvement":
        return None
    return held_out.losses(all_at(0.0, len(held_out.names)))


def _value(objective: Objective, losses: Mapping[str, float], base: Mapping[str, float] | None) -> float:
    """Return the objective, or infinity where a loss is not finite."""
    if all(map(math.isfinite, losses.values())):
        return objective.value(losses, base)
    return math.inf
