"""Gauss-Newton in the coefficients, from forward passes alone: the default for losses.

The cross-loss table gives the logits of the base and of each vector on it; between those the loss is convex in the coefficients, and
its minimum, an affair of algebra, is a start that is close already. From there each step takes N + 1 forward passes for the exact
gradient and Gauss-Newton curvature, and one to check the new point; a step that does not pay is damped and tried again.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.errors import ConfigError
from dem_hub.search.problem import Problem, Trial
from dem_hub.search.solve.local_model import LocalModel
from dem_hub.search.solve.newton import best_point

TOLERANCE = 1e-4  # nats; a step that promises less is not taken
SURPRISE = 0.01  # nats by which a check may differ from what the kept logits promised
_SETTLED = 2e-3  # of a coefficient, in the algebra on kept logits
_STEPS = 12


def usual_budget(count: int) -> int:
    """Forward passes: table, one step, its check, and one more step that was damped."""
    return 12 if count <= 4 else 2 * count + 4


@dataclass(frozen=True)
class GaussNewton:
    """See the module. `max_forward` is 12 for up to four vectors, 2 N + 4 beyond, if the caller does not say."""

    name: str = "gauss_newton"

    def search(self, problem: Problem) -> None:
        """Start from the table's logits, or from a known point, and step."""
        measured, limit = problem.loss_evaluator, problem.budget(usual_budget(problem.count))
        if problem.start is None or problem.quick:
            if limit < problem.count + 1 and not problem.quick:
                raise ConfigError(
                    f"max_forward is {limit:g}, and the cross-loss table of {problem.count} vectors alone takes {problem.count + 1}. Allow "
                    f"{usual_budget(problem.count)}, or use method='optuna'."
                )
            measured.keep_table()
            for number in range(problem.count + 1):
                problem.evaluate([float(number == place + 1) for place in range(problem.count)])
            begin = problem.inside(problem.start or (0.5,) * problem.count)
            point = start_from_logits(problem, begin)
            problem.model = measured.from_logits(point.tolist())
            if problem.quick and self._holds(problem, point):
                return
        else:
            point = problem.inside(problem.start)
        self._step(problem, point, limit)

    def _holds(self, problem: Problem, point: Tensor) -> bool:
        """Whether the start's point is as good as the algebra says: one forward pass."""
        assert problem.model is not None
        promised = problem.objective.value(problem.model.losses(point.tolist()), problem.base_losses)
        found = problem.evaluate(point).value
        if abs(found - promised) > SURPRISE:
            problem.notes.append(
                f"The kept logits promised {promised:.4f} and the check found {found:.4f}: steps were taken from there."
            )
            return False
        return True

    def _step(self, problem: Problem, point: Tensor, limit: float) -> None:
        """Steps until they promise nothing more, or the budget has no room for another and its check."""
        measured, cost = problem.loss_evaluator, problem.count + 2
        if problem.num_forward + cost > limit + 1e-9 >= problem.num_forward + 1:
            problem.evaluate(point)
        while measured.num_forward + cost <= limit + 1e-9:
            model = measured.statistics(point.tolist())
            here = problem.evaluate(point)
            if problem.model is None or here.value <= problem.best.value:
                problem.model = model
            new = self._better(problem, model, here, limit)
            if new is None:
                return
            point = torch.tensor(new.coefficients, dtype=torch.float64)

    def _better(self, problem: Problem, model: LocalModel, here: Trial, limit: float) -> Trial | None:
        """A point whose loss is lower, scored; `None` where the model promises none or the budget ends."""
        point = torch.tensor(model.point, dtype=torch.float64)
        curvature = torch.stack([part.curvature.diagonal() for part in model.parts.values()]).mean(0)
        damping = 0.0
        while problem.num_forward + 1 <= limit + 1e-9:
            prior = problem.prior().combined_with(point, damping * curvature)
            new = best_point(model, problem.objective, problem.region, problem.base_losses, prior)
            promised = here.value - problem.objective.value(model.losses(new.tolist()), problem.base_losses)
            if promised < TOLERANCE:
                return None
            trial = problem.evaluate(new)
            if trial.value < here.value:
                return trial
            damping = 10 * damping or 1.0
        return None


def start_from_logits(problem: Problem, point: Tensor) -> Tensor:
    """The minimum of the convex loss between the table's logits; no forward pass."""
    measured, prior, base = problem.loss_evaluator, problem.prior(), problem.base_losses

    def value_of(model: LocalModel, at: Tensor) -> float:
        return problem.objective.value(model.losses(at.tolist()), base) + prior(at)[0]

    model = measured.from_logits(point.tolist())
    for _ in range(_STEPS):
        new = best_point(model, problem.objective, problem.region, base, prior)
        if float((new - point).abs().max()) < _SETTLED:
            return new
        there = measured.from_logits(new.tolist())
        for _ in range(_STEPS):
            if value_of(there, new) <= value_of(model, point):
                break
            new = (new + point) / 2
            there = measured.from_logits(new.tolist())
        else:
            return point
        point, model = new, there
    return point
