"""The gradient after all coefficients from one backward pass, and L-BFGS-B on it: for many vectors.

    dL / dc_i = <dL / dtheta, delta_i>

is taken parameter by parameter while the backward pass runs, and each parameter's gradient is let go at once, so that no more than one
is ever held. A backward pass counts as two forward passes, whatever the number of vectors.
"""

from dataclasses import dataclass
from typing import Any

import torch

from dem_hub.errors import ConfigError, MissingDependencyError
from dem_hub.search.problem import Problem

_STEPS = 60
_TOLERANCE = 1e-5  # of the loss, from step to step


@dataclass(frozen=True)
class Gradient:
    """L-BFGS-B within the bounds, from `start` or half of every vector. `max_forward` is 60 forward passes if the caller does not say."""

    name: str = "gradient"

    def search(self, problem: Problem) -> None:
        """Minimise."""
        try:
            from scipy.optimize import minimize
        except ImportError as error:
            raise MissingDependencyError(
                f"method='gradient' needs SciPy ({error}): pip install 'dem-hub[search]'"
            ) from error
        likelihoods, limit, prior = problem.loss_evaluator, problem.budget(_STEPS), problem.prior()
        if problem.region.max_sum is not None:
            raise ConfigError(
                "method='gradient' takes bounds and no max_sum. Leave it out, and bound the sum with result.reweight(max_sum=...)."
            )

        class SpentError(Exception):
            """The budget is spent."""

        def function(values: Any) -> tuple[float, Any]:
            if problem.num_forward + 3 > limit + 1e-9:
                raise SpentError
            point = torch.tensor(values, dtype=torch.float64)
            slopes = likelihoods.gradient(tuple(point.tolist()))
            trial = problem.evaluate(point)
            after = problem.objective.slope(trial.losses, problem.base_losses)
            more = prior(point)
            gradient = after @ torch.stack(list(slopes.values())) + more[1]
            return trial.value + more[0], gradient.numpy()

        start = problem.inside(problem.start or (0.5,) * problem.count)
        try:
            minimize(
                function,
                start.numpy(),
                jac=True,
                method="L-BFGS-B",
                bounds=problem.bounds(),
                options={"ftol": _TOLERANCE},
            )
        except SpentError:
            problem.notes.append(f"The gradient's budget of {limit:g} forward passes ended before it had converged.")
