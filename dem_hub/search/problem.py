"""What a strategy sees: named coefficients in a region, points to be scored, a budget, and the best so far.

A trial's losses come from a [`LossEvaluator`] or from a caller's `score`; strategies that need no more than a number do not know which.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dem_hub.errors import ConfigError
from dem_hub.search.held_out import INDEPENDENT, expected_excess
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from dem_hub.search.points import Point
from dem_hub.search.solve.local_model import LocalModel
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.prior import Prior
from dem_hub.search.solve.region import Region

logger = logging.getLogger(__name__)

_EXCESS = 1e-3  # nats that the fitted coefficients may be expected to lose to chance before it is said
SPREAD = 0.5  # by which coefficients are expected to differ from their common one


@dataclass(frozen=True)
class Trial:
    """One candidate: its coefficients, in the order of the vectors; each distribution's loss, in nats a token; and the objective."""

    coefficients: Point
    losses: Mapping[str, float]
    value: float


class Measure(Protocol):
    """Gives the losses of a point, and says what that has cost in forward passes over the data."""

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def num_forward(self) -> float: ...

    def losses(self, point: Sequence[float]) -> dict[str, float]: ...


class Strategy(Protocol):
    """A way to look for the best point. It scores points with `problem.evaluate`; the best of all trials is what it found."""

    @property
    def name(self) -> str: ...

    def search(self, problem: "Problem") -> None: ...


@dataclass
class Problem:
    """The search as a strategy sees it.

    `max_forward` is the limit in forward passes, `None` where the strategy is to decide; `start` a point known to be good; `quick` says
    that the data and all vectors but a few are known from before, so that a check of the start's algebra is enough; `prior_center` is where
    coefficients are drawn to, their common one by default.
    """

    measure: Measure
    objective: Objective
    region: Region
    max_forward: float | None = None
    start: Point | None = None
    quick: bool = False
    seed: int = 0
    callback: Callable[[int, Trial], None] | None = None
    prior_center: Point | None = None
    trials: list[Trial] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model: LocalModel | None = None  # the losses around the best point, where the strategy has them

    @property
    def count(self) -> int:
        """The number of coefficients."""
        return len(self.measure.names)

    @property
    def loss_evaluator(self) -> LossEvaluator:
        """The measure, for strategies that need more than a number.

        Raises:
            `ConfigError`: it is a caller's `score`.
        """
        if not isinstance(self.measure, LossEvaluator):
            raise ConfigError(
                "This method needs the losses of data, and a `score` is one number. Use method='quadratic' or 'optuna'."
            )
        return self.measure

    @property
    def base_losses(self) -> dict[str, float] | None:
        """The base's losses, where the objective asks for them."""
        return self.measure.losses((0.0,) * self.count) if self.objective.kind == "improvement" else None

    @property
    def best(self) -> Trial:
        """The trial with the lowest objective, of those in the region; the first of equals."""
        inside = [
            trial
            for trial in self.trials
            if self.region.contains(torch.tensor(trial.coefficients, dtype=torch.float64))
        ]
        return min(inside, key=lambda trial: trial.value)

    @property
    def num_forward(self) -> float:
        """Forward passes over the data so far."""
        return self.measure.num_forward

    def budget(self, usual: float) -> float:
        """How many forward passes a strategy may use: the caller's number, or what is usual for it."""
        return float(usual if self.max_forward is None else self.max_forward)

    def prior(self) -> Prior:
        """How strongly coefficients are drawn to their common one, or home: a prior of width `SPREAD` against so many independent tokens.

        Source: with T_eff tokens the loss of c fitted coefficients is c / (2 T_eff) above the best on average (Wilks).
        """
        tokens = sum(map(sum, self.loss_evaluator.tokens.values()))
        strength = INDEPENDENT / (SPREAD**2 * tokens)
        if self.prior_center is None:
            return Prior(common_strength=strength)
        return Prior().combined_with(
            torch.tensor(self.prior_center, dtype=torch.float64),
            torch.full((self.count,), strength, dtype=torch.float64),
        )

    def warn_of_few(self) -> None:
        """Note that there are few tokens for so many coefficients, where that is so."""
        tokens, plural = sum(map(sum, self.loss_evaluator.tokens.values())), "" if self.count == 1 else "s"
        excess = expected_excess(tokens, self.count)
        if excess > _EXCESS:
            self.notes.append(
                f"{tokens} tokens are few for {self.count} coefficient{plural}: the loss that is fitted is expected to be {excess:.4f} nats too "
                f"good by chance. {int(self.count * INDEPENDENT / (2 * _EXCESS))} or more, from many documents, are better."
            )

    def evaluate(self, point: Sequence[float] | Tensor) -> Trial:
        """Score a point; a point that was scored before costs nothing and is no new trial."""
        place = tuple(float(value) for value in point)
        for trial in self.trials:
            if trial.coefficients == place:
                return trial
        losses = self.measure.losses(place)
        finite = all(map(math.isfinite, losses.values()))
        value = self.objective.value(losses, self.base_losses) if finite else math.inf
        if not finite:
            note = f"The loss at {dict(zip(self.measure.names, place, strict=True))} is not finite ({losses}); it is out of the running."
            logger.warning(note)
            self.notes.append(note)
        trial = Trial(place, losses, value)
        self.trials.append(trial)
        if self.callback is not None:
            self.callback(len(self.trials) - 1, trial)
        return trial

    def inside(self, point: Sequence[float]) -> Tensor:
        """The nearest point of the region, as a tensor."""
        return self.region.clip(torch.tensor(point, dtype=torch.float64))

    def bounds(self) -> list[tuple[float, float]]:
        """Lower and upper bound of each coefficient."""
        return list(zip(self.region.low.tolist(), self.region.high.tolist(), strict=True))
