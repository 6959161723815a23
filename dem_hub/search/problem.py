"""The search as a strategy sees it: named coefficients in a region, points to score, a budget, and the trials so far.

The losses of a point come from an `Evaluator`: the losses on data, or a caller's `score`. A strategy that
needs no more than a number therefore works with both. Strategies score points only through [`Problem.evaluate`],
which counts trials, scores no point twice and tells the caller's callback; the best trial in the region is what the
search found.
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
from dem_hub.search.measure.score_evaluator import ScoreEvaluator
from dem_hub.search.points import Point, all_at
from dem_hub.search.progress import Progress
from dem_hub.search.solve.local_model import LocalModel
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.prior import Prior
from dem_hub.search.solve.region import Region

logger = logging.getLogger(__name__)

# Standard deviation of the prior around the common coefficient. Chosen by hand: half of the usual range from 0 to
# 1. With it 250 validation tokens of each distribution were enough to beat 1/N and one coefficient for all on test
# text (benchmarks/README.md, `search.py`).
SPREAD = 0.5

# Nats. Users are warned when fitting is expected to flatter the loss by more. The strategies differ by about that
# much in benchmarks/README.md (0.0002 to 0.005); with INDEPENDENT = 10 it is reached below 5,000 tokens for each
# coefficient.
_EXCESS = 1e-3

# Forward passes. Costs are sums of fractions (tokens run / tokens of the data), so that a budget is compared up to
# rounding.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Trial:
    """One scored point.

    `coefficients` are in the order of the problem's names, `losses` are the mean loss of a token of each
    distribution, in nats, and `value` is the objective of these losses.
    """

    coefficients: Point
    losses: Mapping[str, float]
    value: float


Callback = Callable[[int, Trial], None]


class Evaluator(Protocol):
    """Anything that returns the losses of a point, and counts what that has cost in forward passes over the data.

    `question` identifies what it measures: two evaluators with the same question have the same losses.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def num_forward(self) -> float: ...

    @property
    def question(self) -> list[str]: ...

    def losses(self, point: Sequence[float]) -> dict[str, float]: ...


class Strategy(Protocol):
    """A way to look for the best point.

    `search` is called once. It scores points with `problem.evaluate`, stays in `problem.region`, and asks
    `problem.budget` for its limit. It returns a model of the losses around the best point if it has one, and `None`
    otherwise. The model lets a user solve again for another objective without a forward pass.
    """

    @property
    def name(self) -> str: ...

    def search(self, problem: "Problem") -> LocalModel | None: ...


@dataclass
class Problem:
    """A search that is under way.

    Args:
        evaluator ([`Evaluator`]): Source of the losses.
        objective ([`Objective`]): How the losses become one number.
        region ([`Region`]): Where points may lie.
        max_forward (`float`, *optional*): Limit in forward passes over the data. By default the strategy decides.
        start (`tuple[float, ...]`, *optional*): A point that is known to be good.
        quick (`bool`): Whether the logits of an earlier search are there, so that a check of what they predict may
            be enough.
        seed (`int`): Seed of strategies that sample.
        callback (`Callable`, *optional*): Called with the number of each new trial, from 0, and the trial.
        prior_center (`tuple[float, ...]`, *optional*): Centre of the prior. By default it is the common
            coefficient, whatever that is.
        progress ([`Progress`]): Is told of the budget and of the best trial.
        held_out ([`LossEvaluator`], *optional*): The data on which the answer is compared with rivals, if
            there is some of each distribution.
        trials (`list[Trial]`): Trials so far, in order.
        notes (`list[str]`): What the user should know about the trials.
    """

    evaluator: Evaluator
    objective: Objective
    region: Region
    max_forward: float | None = None
    start: Point | None = None
    quick: bool = False
    seed: int = 0
    callback: Callback | None = None
    prior_center: Point | None = None
    progress: Progress = field(default_factory=Progress)
    held_out: LossEvaluator | None = None
    trials: list[Trial] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Number of coefficients."""
        return len(self.evaluator.names)

    @property
    def loss_evaluator(self) -> LossEvaluator:
        """The evaluator of losses, for strategies that need more than a number.

        Raises:
            `ConfigError`: The evaluator is a caller's `score`.
        """
        if not isinstance(self.evaluator, LossEvaluator):
            raise ConfigError(
                "This method needs the losses of data, and a `score` is one number. Use method='quadratic' or 'optuna'."
            )
        return self.evaluator

    @property
    def base_losses(self) -> dict[str, float] | None:
        """Losses of the base if the objective compares with them, else `None`."""
        if self.objective.kind != "improvement":
            return None
        return self.evaluator.losses(all_at(0.0, self.count))

    @property
    def best(self) -> Trial:
        """The trial in the region with the lowest objective; of equals, the first."""
        inside = [trial for trial in self.trials if self.is_inside(trial.coefficients)]
        return min(inside, key=lambda trial: trial.value)

    @property
    def num_forward(self) -> float:
        """Forward passes over the data so far."""
        return self.evaluator.num_forward

    def budget(self, usual: float) -> float:
        """Return the forward passes that a strategy may use: the caller's `max_forward`, or else the `usual` number."""
        limit = float(usual if self.max_forward is None else self.max_forward)
        self.progress.expect(limit - self.num_forward)
        return limit

    def can_afford(self, cost: float, budget: float) -> bool:
        """Return whether `cost` more forward passes stay within a budget that [`Problem.budget`] returned."""
        return self.num_forward + cost <= budget + _ROUNDING

    def prior(self) -> Prior:
        """Return the Gaussian prior on the coefficients.

        The prior has standard deviation `SPREAD` around the common coefficient, or around `prior_center`. It is
        weighed against the data by the effective number of tokens, so that it matters only where tokens are few.

        Source: With T_eff tokens, the loss of c fitted coefficients is on average c / (2 T_eff) above the best
        (Wilks).
        """
        strength = INDEPENDENT / (SPREAD**2 * self._token_count())
        if self.prior_center is None:
            return Prior(common_strength=strength)
        center = torch.tensor(self.prior_center, dtype=torch.float64, device="cpu")
        return Prior(
            center=center, center_strengths=torch.full((self.count,), strength, dtype=torch.float64, device="cpu")
        )

    def notes_on_tokens(self) -> list[str]:
        """Return a warning if there are few tokens for this number of coefficients, else nothing."""
        tokens = self._token_count()
        excess = expected_excess(tokens, self.count)
        if excess <= _EXCESS:
            return []
        plural = "" if self.count == 1 else "s"
        enough = int(self.count * INDEPENDENT / (2 * _EXCESS))
        return [
            f"{tokens:,} tokens are few for {self.count} coefficient{plural}: the loss that is fitted is expected to be "
            f"{excess:.4f} nats too good by chance. Use {enough:,} tokens or more, from many documents."
        ]

    def note_ties(self) -> None:
        """Note that several points are equally good, so that which of them is the best says nothing."""
        values = [trial.value for trial in self.trials]
        count = values.count(self.best.value)
        if count == len(values) > 1:
            self.notes.append(f"Flat: {self._named(self.best.value)} at all of {count} points. The first is returned.")
        elif count > 1:
            named = self._named(self.best.value)
            self.notes.append(f"Tied: {count} of {len(values)} points have the best, {named}. The first is returned.")

    def evaluate(self, point: Sequence[float] | Tensor) -> Trial:
        """Score a point and return its trial.

        A point that was scored before costs nothing and is no new trial. A point whose loss is not finite gets the
        value infinity, and a note.

        Args:
            point (`Sequence[float]` or `Tensor`): Coefficients, (N,). It must lie in the region to become the best
                trial.
        """
        coefficients = tuple(float(value) for value in point)
        for trial in self.trials:
            if trial.coefficients == coefficients:
                return trial
        trial = self._score(coefficients)
        self.trials.append(trial)
        self.progress.best(self._named(min(self.trials, key=lambda trial: trial.value).value))
        if self.callback is not None:
            self.callback(len(self.trials) - 1, trial)
        return trial

    def adopt(self, point: Point, losses: Mapping[str, float]) -> None:
        """Add a trial that another process has scored; the callback is not called."""
        self.trials.append(Trial(point, losses, self.objective.value(losses, self.base_losses)))

    def inside(self, point: Sequence[float]) -> Tensor:
        """Return the nearest point of the region, (N,) in float64."""
        return self.region.clip(torch.tensor(point, dtype=torch.float64, device="cpu"))

    def is_inside(self, point: Sequence[float]) -> bool:
        """Return whether a point lies in the region, up to rounding."""
        return self.region.contains(torch.tensor(point, dtype=torch.float64, device="cpu"))

    def bounds(self) -> list[tuple[float, float]]:
        """Return the lower and the upper bound of each coefficient."""
        return list(zip(self.region.low.tolist(), self.region.high.tolist(), strict=True))

    def _score(self, coefficients: Point) -> Trial:
        losses = self.evaluator.losses(coefficients)
        if all(map(math.isfinite, losses.values())):
            return Trial(coefficients, losses, self.objective.value(losses, self.base_losses))
        named = dict(zip(self.evaluator.names, coefficients, strict=True))
        note = f"The loss at {named} is not finite ({losses}); it is out of the running."
        logger.warning(note)
        self.notes.append(note)
        return Trial(coefficients, losses, math.inf)

    def _named(self, value: float) -> str:
        """Return a value of the objective with its name; a score with its own name and sign."""
        if isinstance(self.evaluator, ScoreEvaluator):
            return f"{self.evaluator.score.name} {self.evaluator.score.own(value):.4g}"
        return f"{self.objective.kind} {value:.4f}"

    def _token_count(self) -> int:
        """Return the number of scored tokens of all distributions together."""
        return sum(map(sum, self.loss_evaluator.tokens.values()))
