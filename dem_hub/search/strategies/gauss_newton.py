"""Gauss-Newton steps in the coefficients, by forward passes alone: the default for losses.

The forward passes of the cross-loss table give the logits of the base and of each vector on it. The loss of the
logits that are linear between those is convex in the coefficients, and its minimum is a good start that costs no
forward pass. From there each step takes N + 1 forward passes for the exact gradient and the Gauss-Newton curvature,
and one to check the new point. A step that does not lower the loss is damped and tried again.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.errors import ConfigError
from dem_hub.search.points import all_at, each_alone
from dem_hub.search.problem import Problem, Trial
from dem_hub.search.solve.local_model import LocalModel
from dem_hub.search.solve.newton import best_point
from dem_hub.search.solve.prior import Prior

# Nats. A step that promises less is not taken. Chosen by hand: the standard error of a difference of losses on
# 1,000 tokens is ten times as large (benchmarks/README.md, `search.py`).
TOLERANCE = 1e-4

# Nats by which a check may differ from what the kept logits promised. Chosen by hand: on a model of 0.12 million
# parameters a promise was off by 0.001.
SURPRISE = 0.01

# Of a coefficient. Newton steps on the kept logits end when no coefficient moves by more. Chosen by hand, not
# measured.
_SETTLED = 2e-3

# Newton steps on the kept logits, and halvings of one of them, at most. They take no forward pass. On SmolLM2-135M
# two steps were enough.
_STEPS = 12


@dataclass(frozen=True)
class GaussNewton:
    """Steps from the table's logits, or from a known point.

    It uses `max_forward` forward passes; if that is not given, 12 for up to four vectors, and 2 N + 4 beyond.
    """

    name: str = "gauss_newton"

    def usual_budget(self, count: int) -> int:
        """Return the forward passes by default: the table, one step, its check, and a second check for a step that was
        damped.

        Up to four vectors it is 12, which is what four take.
        """
        if count <= 4:
            return 12
        return 2 * count + 4

    def search(self, problem: Problem) -> LocalModel | None:
        """Find a start, then take steps until they promise nothing or the budget ends.

        Returns:
            [`LocalModel`] or `None`: Quadratics around the best point; `None` where the budget ended before there
                were any.

        Raises:
            `ConfigError`: `max_forward` is less than the cross-loss table takes, or the evaluator is a score.
        """
        # A score has no logits: it is refused before a budget is complained about.
        loss_evaluator = problem.loss_evaluator
        budget = problem.budget(self.usual_budget(problem.count))
        if problem.start is not None and not problem.quick:
            return _take_steps(problem, problem.inside(problem.start), None, budget)

        if budget < problem.count + 1 and not problem.quick:
            raise ConfigError(
                f"max_forward is {budget:g}, and the cross-loss table of {problem.count} vectors alone takes "
                f"{problem.count + 1}. Allow {self.usual_budget(problem.count)}, or use method='optuna'."
            )
        table = [all_at(0.0, problem.count), *each_alone(problem.count)]
        held_out = problem.held_out
        if held_out is not None:
            # Each of these will be compared with the answer. The held-out data are run while it is merged.
            are_rivals = all(held_out.data.values()) and all(map(problem.is_inside, table))
            held_out = held_out if are_rivals else None
        loss_evaluator.keep_table(held_out)
        for point in table:
            problem.evaluate(point)
        start = start_from_logits(problem, problem.inside(problem.start or all_at(0.5, problem.count)))
        model = loss_evaluator.from_logits(start.tolist())
        if problem.quick and _holds(problem, model, start):
            return model
        return _take_steps(problem, start, model, budget)


def start_from_logits(problem: Problem, point: Tensor) -> Tensor:
    """Return the minimum of the convex loss between the table's logits, (N,), by Newton steps from a point.

    It takes no forward pass.
    """
    loss_evaluator = problem.loss_evaluator
    prior = problem.prior()
    base_losses = problem.base_losses
    model = loss_evaluator.from_logits(point.tolist())
    for _ in range(_STEPS):
        new_point = best_point(model, problem.objective, problem.region, base_losses, prior)
        if float((new_point - point).abs().max()) < _SETTLED:
            return new_point
        value = _value_at_center(problem, model, point, prior)
        new_model = loss_evaluator.from_logits(new_point.tolist())
        # Losses are convex but no quadratics, so that a full step can lead too far.
        for _ in range(_STEPS):
            if _value_at_center(problem, new_model, new_point, prior) <= value:
                break
            new_point = (new_point + point) / 2
            new_model = loss_evaluator.from_logits(new_point.tolist())
        else:
            return point
        point = new_point
        model = new_model
    return point


def _value_at_center(problem: Problem, model: LocalModel, point: Tensor, prior: Prior) -> float:
    """Return the objective with the penalty of the prior, at the point around which the model was made."""
    return problem.objective.value(model.losses(point.tolist()), problem.base_losses) + prior(point)[0]


def _holds(problem: Problem, model: LocalModel, point: Tensor) -> bool:
    """Return whether a point is as good as the kept logits promise: one forward pass."""
    promised = problem.objective.value(model.losses(point.tolist()), problem.base_losses)
    measured = problem.evaluate(point).value
    if abs(measured - promised) <= SURPRISE:
        return True
    problem.notes.append(
        f"The kept logits promised {promised:.4f} and the check found {measured:.4f}: steps were taken from there."
    )
    return False


def _take_steps(problem: Problem, point: Tensor, model: LocalModel | None, budget: float) -> LocalModel | None:
    """Step until that promises nothing more, or the budget has no room for a step and its check.

    Args:
        problem ([`Problem`]): The problem.
        point (`Tensor`): The start, (N,).
        model ([`LocalModel`], *optional*): Quadratics around the start that the kept logits gave.
        budget (`float`): Limit in forward passes.

    Returns:
        [`LocalModel`] or `None`: The quadratics around the best point.
    """
    # N + 1 passes for the statistics, and one for the check.
    step_cost = problem.count + 2
    if not problem.can_afford(step_cost, budget) and problem.can_afford(1, budget):
        problem.evaluate(point)
    while problem.can_afford(step_cost, budget):
        around = problem.loss_evaluator.statistics(point.tolist())
        trial = problem.evaluate(point)
        if model is None or trial.value <= problem.best.value:
            model = around
        better = _find_better(problem, around, trial, budget)
        if better is None:
            break
        point = torch.tensor(better.coefficients, dtype=torch.float64, device="cpu")
    return model


def _find_better(problem: Problem, model: LocalModel, trial: Trial, budget: float) -> Trial | None:
    """Return a trial that is better than the given one, which is at the model's point.

    It is `None` if the model promises none, or the budget ends.
    """
    point = torch.tensor(model.point, dtype=torch.float64, device="cpu")
    curvature = torch.stack([part.curvature.diagonal() for part in model.parts.values()]).mean(0)
    # Levenberg and Marquardt: a pull back to the point, of `damping` times the curvature's diagonal, makes the step
    # shorter. The damping is 0 at first, and after each failure 1, 10, 100, ...
    damping = 0.0
    while problem.can_afford(1, budget):
        prior = problem.prior().combined_with(point, damping * curvature)
        new_point = best_point(model, problem.objective, problem.region, problem.base_losses, prior)
        promised = trial.value - problem.objective.value(model.losses(new_point.tolist()), problem.base_losses)
        if promised < TOLERANCE:
            return None
        new_trial = problem.evaluate(new_point)
        if new_trial.value < trial.value:
            return new_trial
        damping = 10 * damping or 1.0
    return None
