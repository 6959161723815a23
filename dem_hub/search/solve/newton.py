"""Small convex problems: losses that are (or look like) quadratics, one objective, bounds, and a bound on the sum.

A projected Newton method in float64: exact for a quadratic, a few steps for anything smooth, and singular curvatures (two vectors that
are the same) are made regular by the prior towards a common coefficient. A bound on the sum becomes a price on it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dem_hub.search.solve.local_model import LocalModel, Quadratic
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.prior import Prior
from dem_hub.search.solve.region import Region, common_bounds

Smooth = Callable[[Tensor], tuple[float, Tensor, Tensor]]  # value, gradient and curvature at a point

_JITTER = 1e-9  # of the largest curvature, so that no system is singular
_TEMPERATURES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # nats; of the soft maximum that stands for `worst`


def minimize(function: Smooth, start: Tensor, region: Region) -> Tensor:
    """The point of a region where a convex function is lowest.

    Args:
        function (`Callable`): value, gradient (N,) and positive semi-definite curvature (N, N), all float64.
        start (`Tensor`): (N,).
        region ([`Region`]): where to look.

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
    found = _in_box(function, start, region)
    if region.max_sum is None or float(found.sum()) <= region.max_sum + 1e-12:
        return found
    low, high = 0.0, 1.0
    while float((found := _in_box(_priced(function, high), found, region)).sum()) > region.max_sum and high < 1e9:
        low, high = high, 4 * high
    for _ in range(60):
        middle = (low + high) / 2
        found = _in_box(_priced(function, middle), found, region)
        low, high = (middle, high) if float(found.sum()) > region.max_sum else (low, middle)
    return region.clip(_in_box(_priced(function, high), found, region))


def _priced(function: Smooth, price: float) -> Smooth:
    def priced(point: Tensor) -> tuple[float, Tensor, Tensor]:
        value, gradient, curvature = function(point)
        return value + price * float(point.sum()), gradient + price, curvature

    return priced


def _in_box(function: Smooth, start: Tensor, region: Region) -> Tensor:
    """Newton's method on the coefficients that are not held by a bound (Bertsekas, 1982)."""
    point = start.clamp(region.low, region.high)
    value, gradient, curvature = function(point)
    for _ in range(100):
        held = ((point <= region.low) & (gradient > 0)) | ((point >= region.high) & (gradient < 0))
        free = (~held).nonzero().squeeze(1)
        if not len(free) or float(gradient[free].abs().max()) < 1e-13:
            break
        matrix = curvature[free][:, free]
        jitter = _JITTER * float(matrix.diagonal().abs().max()) + 1e-15
        step = torch.zeros_like(point)
        step[free] = -torch.linalg.solve(matrix + jitter * torch.eye(len(free), dtype=torch.float64), gradient[free])
        length = 1.0
        while length > 1e-12:
            tried = (point + length * step).clamp(region.low, region.high)
            new = function(tried)
            if new[0] <= value + 1e-4 * float(gradient @ (tried - point)):
                break
            length /= 2
        else:
            break
        if float((tried - point).abs().max()) < 1e-12:
            break
        point, (value, gradient, curvature) = tried, new
    return point


def best_point(
    model: LocalModel,
    objective: Objective,
    region: Region,
    base_losses: dict[str, float] | None = None,
    prior: Prior | None = None,
) -> Tensor:
    """The point of a region where the objective of a local model is lowest."""
    factors = torch.tensor(objective.factors(list(model.parts), base_losses), dtype=torch.float64)
    center = torch.tensor(model.point, dtype=torch.float64)
    parts = list(model.parts.values())

    def at(temperature: float | None) -> Smooth:
        def function(point: Tensor) -> tuple[float, Tensor, Tensor]:
            step = point - center
            values = factors * torch.stack([part.value(step) for part in parts])
            slopes = factors.unsqueeze(1) * torch.stack([part.slope(step) for part in parts])
            curvatures = factors[:, None, None] * torch.stack([part.curvature for part in parts])
            value, gradient, curvature = _combined(values, slopes, curvatures, temperature)
            more = (prior or Prior())(point)
            return value + more[0], gradient + more[1], curvature + more[2]

        return function

    start = region.clip(center)
    if objective.kind != "worst":
        return minimize(at(None), start, region)
    for temperature in _TEMPERATURES:
        start = minimize(at(temperature), start, region)
    return start


def common_point(
    model: LocalModel, objective: Objective, region: Region, base_losses: dict[str, float] | None = None
) -> Tensor:
    """The best point with the same coefficient for all vectors, as far as bounds allow it."""
    count = len(model.names)
    ones = torch.ones(count, dtype=torch.float64)
    line = LocalModel(("all",), (0.0,), {name: _along(part, model, ones) for name, part in model.parts.items()})
    low, high = common_bounds(region)
    if high < low:
        return region.clip(ones * low)
    return ones * float(best_point(line, objective, Region.of([(low, high)]), base_losses)[0])


def _along(part: Quadratic, model: LocalModel, direction: Tensor) -> Quadratic:
    """A quadratic on the line from 0 in a direction."""
    back = -torch.tensor(model.point, dtype=torch.float64)
    slope, curvature = part.slope(back) @ direction, direction @ part.curvature @ direction
    return Quadratic(float(part.value(back)), slope.reshape(1), curvature.reshape(1, 1))


def _combined(
    values: Tensor, slopes: Tensor, curvatures: Tensor, temperature: float | None
) -> tuple[float, Tensor, Tensor]:
    """Their sum, or their maximum, softened: t * log(sum(exp(values / t)))."""
    if temperature is None:
        return float(values.sum()), slopes.sum(0), curvatures.sum(0)
    shares = (values / temperature).softmax(0)
    gradient = shares @ slopes
    spread = torch.einsum("k,ki,kj->ij", shares, slopes, slopes) - torch.outer(gradient, gradient)
    value = float(temperature * torch.logsumexp(values / temperature, 0))
    return value, gradient, torch.einsum("k,kij->ij", shares, curvatures) + spread / temperature
