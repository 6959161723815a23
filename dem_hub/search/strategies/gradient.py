"""L-BFGS-B on the gradient after all coefficients, which one backward pass gives: for many vectors.

The derivative after coefficient i is the inner product of the gradient of the weights and delta i (see
`search/measure/gradients.py`). A backward pass counts as two forward passes, whatever the number of vectors.
"""

from dataclasses import dataclass
from typing import Any

import torch

from dem_hub.errors import ConfigError, MissingDependencyError
from dem_hub.search.points import all_at
from dem_hub.search.problem import Problem

# Forward passes by default: 20 gradients. Chosen by hand. For four vectors of a model of 0.12 million parameters, 4
# or 5 were enough.
_BUDGET = 60

# Forward passes of a gradient: one pass forward, and one backward, which counts two.
_COST = 3

# L-BFGS-B stops when a step lowers the loss by less than this share of it. Chosen by hand, not measured: of a loss
# of 2 nats it is 2e-5.
_TOLERANCE = 1e-5


class _SpentError(Exception):
    """Raised inside the minimizer when the budget has no room for another gradient."""


@dataclass(frozen=True)
class Gradient:
    """L-BFGS-B within the bounds, from the start of the problem or half of every vector.

    It uses `max_forward` forward passes, or 60 if that is not given.
    """

    name: str = "gradient"

    def usual_budget(self, count: int) -> int:  # noqa: ARG002
        """Return the forward passes by default."""
        return _BUDGET

    def search(self, problem: Problem) -> None:
        """Minimize the objective.

        Raises:
            `ConfigError`: The sum of the coefficients is limited, or the evaluator is a score.
            `MissingDependencyError`: SciPy is not installed.
        """
        try:
            from scipy.optimize import minimize
        except ImportError as error:
            raise MissingDependencyError(
                f"method='gradient' needs SciPy ({error}): pip install 'dem-hub[search]'"
            ) from error
        loss_evaluator = problem.loss_evaluator
        budget = problem.budget(self.usual_budget(problem.count))
        prior = problem.prior()
        if problem.region.max_sum is not None:
            raise ConfigError(
                "method='gradient' takes bounds and no max_sum. Leave it out, or search with method='gauss_newton'."
            )

        def value_and_gradient(values: Any) -> tuple[float, Any]:
            if not problem.can_afford(_COST, budget):
                raise _SpentError
            point = torch.tensor(values, dtype=torch.float64, device="cpu")
            slopes = loss_evaluator.gradient(tuple(point.tolist()))
            trial = problem.evaluate(point)
            # The chain rule: of the objective after the losses, and of the losses after the coefficients.
            after_losses = problem.objective.slope(trial.losses, problem.base_losses)
            penalty, penalty_gradient, _ = prior(point)
            gradient = after_losses @ torch.stack(list(slopes.values())) + penalty_gradient
            return trial.value + penalty, gradient.numpy()

        start = problem.inside(problem.start or all_at(0.5, problem.count))
        try:
            minimize(
                value_and_gradient,
                start.numpy(),
                jac=True,
                method="L-BFGS-B",
                bounds=problem.bounds(),
                options={"ftol": _TOLERANCE},
            )
        except _SpentError:
            problem.notes.append(f"The gradient's budget of {budget:g} forward passes ended before it had converged.")
