"""How far the found coefficients can be trusted: their standard errors, from the curvature of the losses.

Other validation data of the same kind would give other coefficients. How much they would vary is in the quadratics that
a search keeps, so that it costs no pass.
"""

from collections.abc import Mapping, Sequence

import torch

from dem_hub.search.held_out import INDEPENDENT
from dem_hub.search.solve.local_model import LocalModel
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.region import Region

# A coefficient that is nearer than this to a bound is held by it, and has no error of its own.
_AT_BOUND = 1e-6

# Of the largest curvature: with less in a direction, coefficients cannot be told apart along it.
_SINGULAR = 1e-6


def coefficient_errors(
    model: LocalModel,
    objective: Objective,
    tokens: Mapping[str, int],
    point: Sequence[float],
    region: Region,
    base_losses: Mapping[str, float] | None = None,
) -> list[float | None]:
    """Return the standard error of each coefficient.

    It is `None` where a bound holds a coefficient. All are `None` if the objective is `worst`, whose minimum lies at an
    edge, if the limit of the sum holds the coefficients, or if the losses cannot tell some of them apart.

    Args:
        model ([`LocalModel`]): The losses by distribution.
        objective ([`Objective`]): What was minimized.
        tokens (`Mapping[str, int]`): Scored tokens of each distribution.
        point (`Sequence[float]`): The coefficients that were found.
        region ([`Region`]): Where they may be.
        base_losses (`Mapping[str, float]`, *optional*): The losses of the base, which `improvement` needs.

    Source: the sandwich estimator (White, 1982). The curvature of a log-likelihood is also the variance of its slope
    for one token, of which `INDEPENDENT` make an independent one.
    """
    errors: list[float | None] = [None] * len(point)
    there = torch.tensor(point, dtype=torch.float64, device="cpu")
    held_by_sum = region.max_sum is not None and float(there.sum()) >= region.max_sum - _AT_BOUND
    if objective.kind == "worst" or held_by_sum:
        return errors
    free = ((there > region.low + _AT_BOUND) & (there < region.high - _AT_BOUND)).nonzero().squeeze(1)
    factors = objective.factors(list(model.parts), base_losses)
    curvature = torch.zeros(len(point), len(point), dtype=torch.float64, device="cpu")
    variance = torch.zeros_like(curvature)
    for factor, (name, part) in zip(factors, model.parts.items(), strict=True):
        if factor:
            curvature += factor * part.curvature
            variance += factor**2 * part.curvature * INDEPENDENT / tokens[name]
    curvature, variance = curvature[free][:, free], variance[free][:, free]
    if not len(free) or _is_singular(curvature):
        return errors
    inverse = torch.linalg.inv(curvature)
    squares = (inverse @ variance @ inverse).diagonal().clamp(min=0)
    for place, error in zip(free.tolist(), squares.sqrt().tolist(), strict=True):
        errors[place] = error
    return errors


def _is_singular(curvature: torch.Tensor) -> bool:
    values = torch.linalg.eigvalsh(curvature)
    return float(values[0]) <= _SINGULAR * float(values[-1])
