"""The losses to expect at any coefficients, from what a search kept: no forward pass, so a slider can ask at each move.

A search leaves a quadratic for each distribution around one of its last points. What it found may lie a step further:
there the quadratics are corrected to what was measured. How far they can be trusted is not in them, but in the search's
other trials: at each of them the loss was measured, so the error of the quadratic is known. The largest of these errors
for its distance is what the uncertainty is made of.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dem_hub.search.points import Point, all_at
from dem_hub.search.problem import Trial
from dem_hub.search.solve.local_model import LocalModel

if TYPE_CHECKING:
    from dem_hub.search.result import SearchResult

# Of a coefficient: trials nearer to the found point than this say nothing of how an error grows, since there the
# error of a measurement in float32 is as large.
_NEAR = 0.05

# The power of the distance with which an error grows. A strategy's curvature is not quite that of the loss, so it is
# the second and not the third.
_POWER = 2

# Trials lie in few directions, and other directions are worse. On the tests' counting models the errors at 32 random
# points were up to 1.9 times the largest that the trials have. A distribution's own trials said less of its errors.
_MARGIN = 2.0

# Nats. An expected loss that may be off by more is marked: mixtures differ by about as much.
UNSURE = 0.01


@dataclass(frozen=True)
class Expected:
    """A loss that is expected, in nats a token, and how far from it the measured one may be.

    `error` is `None` where nothing is known of it: the search made no trial away from what it found.
    """

    loss: float
    error: float | None


@dataclass(frozen=True)
class Prediction:
    """What a search knows of the losses at any coefficients.

    Args:
        result ([`SearchResult`]): The search; its model has the names of the recipe's vectors.
        model ([`LocalModel`]): The quadratics, corrected.
        growth (`float`, *optional*): How far off a quadratic may be at distance 1, in nats.
    """

    result: "SearchResult"
    model: LocalModel
    growth: float | None

    @classmethod
    def of(cls, result: "SearchResult | None") -> "Prediction | None":
        """Return the prediction of a search; `None` if there is no search, or it left no quadratics.

        Where RegMean vectors are kept, it is about the vectors that were searched.
        """
        if result is None or result.model is None:
            return None
        names = tuple(result.plain.coefficients)
        if len(names) != len(result.model.names):
            return None
        # The folders may have been moved, together with the recipe. The order stays.
        model = replace(result.model, names=names)
        corrected = _corrected(model, result.best)
        # The best trial has no error any more.
        growth = _growth(corrected, [trial for trial in result.trials if trial != result.best])
        return cls(replace(result, model=model), corrected, growth)

    @classmethod
    def of_recipe(cls, result: "SearchResult | None") -> "Prediction | None":
        """Return the prediction for the vectors of a search's recipe; `None` also where these are RegMean vectors."""
        if result is None or result.kept_regmean is not None:
            return None
        return cls.of(result)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the vectors, in the order of a point."""
        return self.model.names

    @property
    def base_losses(self) -> dict[str, float]:
        """The losses of the base on the search's data, as far as they were measured; of a score, from its trials."""
        return self.result.searched_base_losses or self.measured(all_at(0.0, len(self.names)))

    def losses(self, point: Sequence[float]) -> dict[str, Expected]:
        """Return the loss to expect at a point, by distribution."""
        error = None
        if self.growth is not None:
            error = float(self.errors(torch.tensor([list(point)], dtype=torch.float64, device="cpu")))
        return {name: Expected(loss, error) for name, loss in self.model.losses(point).items()}

    def best(self, without: Collection[str], objective: str | None = None) -> dict[str, float]:
        """Return the best coefficients without some of the vectors, by name, for the search's objective or another."""
        known = [name for name in self.names if name in without]
        return dict(self.result.reweight(objective, without=known).coefficients)

    def value(self, point: Sequence[float]) -> Expected:
        """Return the search's objective to expect at a point."""
        expected = self.losses(point)
        value = self._objective({name: each.loss for name, each in expected.items()})
        if self.growth is None:
            return Expected(value, None)
        highest = {name: each.loss + (each.error or 0.0) for name, each in expected.items()}
        return Expected(value, self._objective(highest) - value)

    def objective(self, losses: Mapping[str, float]) -> float | None:
        """Return the search's objective of measured losses; `None` if those of a distribution are not there."""
        if any(name not in losses for name in self.model.parts):
            return None
        return self._objective({name: losses[name] for name in self.model.parts})

    def values(self, points: Tensor) -> Tensor:
        """Return the objective to expect at many points, (M, N), as (M,) in float64."""
        steps = points - torch.tensor(self.model.point, dtype=torch.float64, device="cpu")
        factors = self.result.objective.factors(list(self.model.parts), self.base_losses or None)
        terms = []
        for factor, part in zip(factors, self.model.parts.values(), strict=True):
            losses = part.loss + steps @ part.gradient + ((steps @ part.curvature) * steps).sum(1) / 2
            terms.append(factor * losses)
        stacked = torch.stack(terms)
        return stacked.amax(0) if self.result.objective.kind == "worst" else stacked.sum(0)

    def measured(self, point: Sequence[float]) -> dict[str, float]:
        """Return the losses that the search measured at a point; nothing if that was none of its trials."""
        for trial in self.result.trials:
            if trial.coefficients == tuple(point):
                return dict(trial.losses)
        return {}

    def errors(self, points: Tensor) -> Tensor:
        """Return how far off an expected loss may be at many points, (M, N), as (M,) in float64.

        The error grows with the squared distance from where the losses are known: the quadratics' own point, and what
        was found. Between the two the quadratics are corrected by their values alone. So away from what was found, the
        error begins with a slope, which grows with the distance of the two.
        """
        assert self.growth is not None, "nothing is known of the errors"
        found = torch.tensor(self.result.best.coefficients, dtype=torch.float64, device="cpu")
        center = torch.tensor(self.model.point, dtype=torch.float64, device="cpu")
        step = (points - found).norm(dim=1)
        beyond = step * (step + 2 * (center - found).norm())
        return self.growth * torch.minimum((points - center).norm(dim=1) ** _POWER, beyond)

    def _objective(self, losses: Mapping[str, float]) -> float:
        return self.result.objective.value(losses, self.base_losses or None)


def _corrected(model: LocalModel, best: Trial) -> LocalModel:
    """Return the quadratics with the losses that were measured at the best trial, and unchanged at their own point.

    Of all changes of the curvature that do this, it is the least (in the Frobenius norm, as in Powell's updates).
    """
    step = torch.tensor(best.coefficients, dtype=torch.float64, device="cpu") - torch.tensor(
        model.point, dtype=torch.float64, device="cpu"
    )
    length = float(step.norm())
    if length <= _NEAR:
        return model
    direction = torch.outer(step, step) / length**4
    parts = {}
    for name, part in model.parts.items():
        error = best.losses[name] - float(part.value(step))
        parts[name] = replace(part, curvature=part.curvature + 2 * error * direction)
    return replace(model, parts=parts)


def _growth(model: LocalModel, trials: Sequence[Trial]) -> float | None:
    """Return the largest error of the quadratics for its distance, among the trials, with a margin."""
    errors = []
    for trial in trials:
        distance = _distance(model.point, trial.coefficients)
        if distance > _NEAR:
            losses = model.losses(trial.coefficients)
            errors += [abs(loss - trial.losses[name]) / distance**_POWER for name, loss in losses.items()]
    return _MARGIN * max(errors) if errors else None


def _distance(first: Point, second: Sequence[float]) -> float:
    """Return the length of the step from one point to another."""
    step = torch.tensor(second, dtype=torch.float64, device="cpu") - torch.tensor(
        first, dtype=torch.float64, device="cpu"
    )
    return float(step.norm())
