"""Small convex problems in float64: one objective of losses that are quadratics, or look like them, in a region.

The solver is a projected Newton method. It is exact for a quadratic in one step and takes a few for anything smooth.
Curvatures that are singular (two vectors that are the same) are made regular by a prior, see [`Prior`]. A limit on
the sum of the coefficients becomes a price on the sum, found by bisection. The objective `worst`, a maximum, is
solved as a soft maximum that becomes harder step by step.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dem_hub.search.points import Point
from dem_hub.search.solve.local_model import LocalModel, Quadratic
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.prior import Prior
from dem_hub.search.solve.region import Region, common_bounds

# A function that returns its value, gradient (N,) and curvature (N, N) at a point (N,), all float64.
Smooth = Callable[[Tensor], tuple[float, Tensor, Tensor]]

# The constants below are limits of float64 arithmetic (some 1e-16 for coefficients and losses near 1) with room to
# spare. They were chosen by hand; the tests compare the results with closed forms and with brute force.

# What is added to the diagonal of a system so that it is never singular: a fraction of its largest curvature, and an
# absolute part for curvatures that are all 0.
_RELATIVE_JITTER = 1e-9
_ABSOLUTE_JITTER = 1e-15

# Newton steps, at most. A quadratic takes one, and some more where bounds hold.
_NEWTON_STEPS = 100

# A gradient, in nats a unit of a coefficient, and a step of a coefficient, at which a solution has converged.
_LEAST_GRADIENT = 1e-13
_LEAST_STEP = 1e-12

# The fraction of a Newton step at which the line search gives up, and the fraction of the expected decrease that it
# accepts (Armijo's condition, with the usual 1e-4).
_LEAST_FRACTION = 1e-12
_ARMIJO = 1e-4

# The sum of coefficients may exceed its limit by this much.
_SUM_SLACK = 1e-12

# The price on the sum: the bracket grows by the factor until the sum is low enough or the price is the highest, then
# 60 bisections reduce it to the resolution of float64 (2^-53).
_PRICE_FACTOR = 4
_HIGHEST_PRICE = 1e9
_BISECTIONS = 60

# Temperatures of the soft maximum that stands for `worst`, in nats. It exceeds the maximum by at most temperature *
# log(distributions), so the last one is exact to some 1e-6 nats.
_TEMPERATURES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)


def minimize(function: Smooth, start: Tensor, region: Region) -> Tensor:
    """Return the point of a region where a convex function is lowest, (N,) in float64.

    Args:
        function (`Callable`): Returns value, gradient (N,) and positive semi-definite curvature (N, N) at a point,
            all float64.
        start (`Tensor`): (N,), float64.
        region ([`Region`]): Where to look.

    Example:

    ```python
    >>> import torch
    >>> from dem_hub.search.solve.newton import minimize
    >>> from dem_hub.search.solve.region import Region
    >>> best, matrix = torch.tensor([0.5, -0.2]).double(), torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double()
    >>> bowl = lambda point: (float((point - best) @ matrix @ (point - best)) / 2, matrix @ (point - best), matrix)
    >>> [round(x, 6) for x in minimize(bowl, torch.zeros(2).double(), Region.of([(-1, 1), (-1, 1)])).tolist()]
    [0.5, -0.2]
    >>> [round(x, 6) for x in minimize(bowl, torch.zeros(2).double(), Region.of([(0, 1), (0, 1)])).tolist()]
    [0.45, 0.0]

    ```
    """
    point = _minimize_in_box(function, start, region)
    if region.max_sum is None or float(point.sum()) <= region.max_sum + _SUM_SLACK:
        return point
    low = 0.0
    high = 1.0
    while True:
        point = _minimize_in_box(_with_price(function, high), point, region)
        if float(point.sum()) <= region.max_sum or high >= _HIGHEST_PRICE:
            break
        low = high
        high = _PRICE_FACTOR * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        point = _minimize_in_box(_with_price(function, middle), point, region)
        if float(point.sum()) > region.max_sum:
            low = middle
        else:
            high = middle
    return region.clip(_minimize_in_box(_with_price(function, high), point, region))


def _with_price(function: Smooth, price: float) -> Smooth:
    """Return the function plus a price on the sum of the coefficients."""

    def with_price(point: Tensor) -> tuple[float, Tensor, Tensor]:
        value, gradient, curvature = function(point)
        return value + price * float(point.sum()), gradient + price, curvature

    return with_price


def _minimize_in_box(function: Smooth, start: Tensor, region: Region) -> Tensor:
    """Minimize between the bounds alone, by Newton's method on the coefficients that no bound holds.

    Source: Bertsekas, Projected Newton methods for optimization problems with simple constraints (1982).
    """
    point = start.clamp(region.low, region.high)
    value, gradient, curvature = function(point)
    for _ in range(_NEWTON_STEPS):
        held_low = (point <= region.low) & (gradient > 0)
        held_high = (point >= region.high) & (gradient < 0)
        free = (~(held_low | held_high)).nonzero().squeeze(1)
        if not len(free) or float(gradient[free].abs().max()) < _LEAST_GRADIENT:
            return point
        step = torch.zeros_like(point)
        step[free] = _newton_step(gradient[free], curvature[free][:, free])
        fraction = 1.0
        while True:
            tried = (point + fraction * step).clamp(region.low, region.high)
            tried_value, tried_gradient, tried_curvature = function(tried)
            if tried_value <= value + _ARMIJO * float(gradient @ (tried - point)):
                break
            fraction /= 2
            if fraction <= _LEAST_FRACTION:
                return point
        if float((tried - point).abs().max()) < _LEAST_STEP:
            return point
        point = tried
        value = tried_value
        gradient = tried_gradient
        curvature = tried_curvature
    return point


def _newton_step(gradient: Tensor, curvature: Tensor) -> Tensor:
    jitter = _RELATIVE_JITTER * float(curvature.diagonal().abs().max()) + _ABSOLUTE_JITTER
    regular = curvature + jitter * torch.eye(len(gradient), dtype=torch.float64, device="cpu")
    step: Tensor = torch.linalg.solve(regular, gradient)
    return -step


def best_point(
    model: LocalModel,
    objective: Objective,
    region: Region,
    base_losses: dict[str, float] | None = None,
    prior: Prior | None = None,
) -> Tensor:
    """Return the point of a region where the objective of a local model is lowest, (N,) in float64.

    Args:
        model ([`LocalModel`]): The losses by distribution.
        objective ([`Objective`]): Makes one number of the losses.
        region ([`Region`]): Where to look.
        base_losses (`dict[str, float]`, *optional*): The losses of the base, which the objective `improvement` needs.
        prior ([`Prior`], *optional*): A penalty that is added to the objective.
    """
    factors = torch.tensor(objective.factors(list(model.parts), base_losses), dtype=torch.float64, device="cpu")
    center = torch.tensor(model.point, dtype=torch.float64, device="cpu")
    parts = list(model.parts.values())
    penalty = prior or Prior()

    def objective_at(temperature: float | None) -> Smooth:
        """Return the function to minimize: the sum of the losses times their factors, or their soft maximum at a
        temperature, plus the prior's penalty.
        """

        def function(point: Tensor) -> tuple[float, Tensor, Tensor]:
            step = point - center
            values = factors * torch.stack([part.value(step) for part in parts])
            slopes = factors.unsqueeze(1) * torch.stack([part.slope(step) for part in parts])
            curvatures = factors[:, None, None] * torch.stack([part.curvature for part in parts])
            value, gradient, curvature = _combine(values, slopes, curvatures, temperature)
            prior_value, prior_gradient, prior_curvature = penalty(point)
            return value + prior_value, gradient + prior_gradient, curvature + prior_curvature

        return function

    point = region.clip(center)
    if objective.kind != "worst":
        return minimize(objective_at(None), point, region)
    for temperature in _TEMPERATURES:
        point = minimize(objective_at(temperature), point, region)
    return point


def common_point(
    model: LocalModel, objective: Objective, region: Region, base_losses: dict[str, float] | None = None
) -> Tensor:
    """Return the best point with one coefficient for all vectors, (N,) in float64.

    If the bounds leave no such point, it is the point of the region nearest to the highest of the lower bounds.
    """
    ones = torch.ones(len(model.names), dtype=torch.float64, device="cpu")
    low, high = common_bounds(region)
    if high < low:
        return region.clip(ones * low)
    parts = {name: _along(part, model.point, ones) for name, part in model.parts.items()}
    line = LocalModel(("all",), (0.0,), parts)
    return ones * float(best_point(line, objective, Region.of([(low, high)]), base_losses)[0])


def _along(part: Quadratic, point: Point, direction: Tensor) -> Quadratic:
    """Return a quadratic around `point` as one of a single variable, on the line from the origin in a direction."""
    to_origin = -torch.tensor(point, dtype=torch.float64, device="cpu")
    slope = part.slope(to_origin) @ direction
    curvature = direction @ part.curvature @ direction
    return Quadratic(float(part.value(to_origin)), slope.reshape(1), curvature.reshape(1, 1))


def _combine(
    values: Tensor, slopes: Tensor, curvatures: Tensor, temperature: float | None
) -> tuple[float, Tensor, Tensor]:
    """Return value, gradient and curvature of the sum of K functions, or of their soft maximum.

    The soft maximum at temperature t is t * log(sum(exp(values / t))). Shapes: values (K,), slopes (K, N), curvatures
    (K, N, N).
    """
    if temperature is None:
        return float(values.sum()), slopes.sum(0), curvatures.sum(0)
    shares = (values / temperature).softmax(0)
    value = float(temperature * torch.logsumexp(values / temperature, 0))
    gradient = shares @ slopes
    # The second derivative of a soft maximum also has the covariance of the slopes under the shares.
    covariance = torch.einsum("k,ki,kj->ij", shares, slopes, slopes) - torch.outer(gradient, gradient)
    curvature = torch.einsum("k,kij->ij", shares, curvatures) + covariance / temperature
    return value, gradient, curvature
