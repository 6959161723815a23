"""Small convex problems: losses that are (or look like) quadratics, one objective, bounds, and a bound on the sum.

A projected Newton method in float64: exact for a quadratic, a few steps for anything smooth, and singular curvatures (two vectors that
are the same) are made regular by the pull towards a common coefficient. A bound on the sum becomes a price on it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.errors import ConfigError
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.quadratic import LocalModel, Quadratic

Smooth = Callable[[Tensor], tuple[float, Tensor, Tensor]]  # value, gradient and curvature at a point

_JITTER = 1e-9  # of the largest curvature, so that no system is singular
_TEMPERATURES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6)  # nats; of the soft maximum that stands for `worst`


@dataclass(frozen=True)
class Region:
    """Where coefficients may lie: between bounds, (N,) each, and with a sum of at most `max_sum`."""

    low: Tensor
    high: Tensor
    max_sum: float | None = None

    @classmethod
    def of(cls, bounds: Sequence[tuple[float, float]], max_sum: float | None = None) -> "Region":
        """From a (lower, upper) pair a vector.

        Raises:
            `ConfigError`: an upper bound below its lower one, or a `max_sum` that the lower bounds exceed.
        """
        low, high = torch.tensor(bounds, dtype=torch.float64).reshape(-1, 2).T
        if not bool((low <= high).all()) or not bool(torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise ConfigError(f"bounds are {list(bounds)}; each must be a finite (lower, upper) pair.")
        if max_sum is not None and not float(low.sum()) <= max_sum:
            raise ConfigError(
                f"max_sum is {max_sum}, and the lower bounds sum to {float(low.sum())}. Allow a larger sum."
            )
        return cls(low, high, max_sum)

    def clip(self, point: Tensor) -> Tensor:
        """The nearest point between the bounds; where that sums to too much, the nearest on the way to the lower bounds."""
        inside = point.clamp(self.low, self.high)
        excess = 0.0 if self.max_sum is None else float(inside.sum()) - self.max_sum
        if excess <= 0:
            return inside
        room = inside - self.low
        return inside - room * (excess / float(room.sum()))

    def contains(self, point: Tensor) -> bool:
        """Whether a point lies in it, to rounding."""
        inside = bool(((point >= self.low - 1e-9) & (point <= self.high + 1e-9)).all())
        return inside and (self.max_sum is None or float(point.sum()) <= self.max_sum + 1e-9)


@dataclass(frozen=True)
class Pull:
    """A quadratic penalty: `towards_common` on differences between coefficients, `towards` a point with (N,) `weights`."""

    towards_common: float = 0.0
    towards: Tensor | None = None
    weights: Tensor | None = None

    def towards_also(self, point: Tensor, weights: Tensor) -> "Pull":
        """This and a penalty on the distance to another point, (N,), with (N,) weights; a constant is left out."""
        if self.towards is None or self.weights is None:
            return Pull(self.towards_common, point, weights)
        total = self.weights + weights
        mean = (self.weights * self.towards + weights * point) / total.clamp(min=1e-300)
        return Pull(self.towards_common, mean, total)

    def __call__(self, point: Tensor) -> tuple[float, Tensor, Tensor]:
        """Its value, gradient and curvature."""
        count = len(point)
        apart = torch.eye(count, dtype=torch.float64) - 1 / count
        matrix = self.towards_common * apart
        gradient = matrix @ point
        value = float(point @ gradient) / 2
        if self.towards is not None and self.weights is not None:
            step = point - self.towards
            matrix = matrix + torch.diag(self.weights)
            gradient = gradient + self.weights * step
            value += float(step @ (self.weights * step)) / 2
        return value, gradient, matrix


def minimize(function: Smooth, start: Tensor, region: Region) -> Tensor:
    """The point of a region where a convex function is lowest.

    Args:
        function (`Callable`): value, gradient (N,) and positive semi-definite curvature (N, N), all float64.
        start (`Tensor`): (N,).
        region ([`Region`]): where to look.

    Example:

    ```python
    >>> import torch
    >>> from dem_hub.search.solve.newton import Region, minimize
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
    pull: Pull | None = None,
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
            more = (pull or Pull())(point)
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


def common_bounds(region: Region) -> tuple[float, float]:
    """Between which all coefficients may be the same; the upper below the lower where they may not."""
    low, high = float(region.low.max()), float(region.high.min())
    return low, high if region.max_sum is None else min(high, region.max_sum / len(region.low))


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
