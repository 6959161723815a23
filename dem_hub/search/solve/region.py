"""The region in which coefficients are looked for, and the prior that draws them together."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.errors import ConfigError


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


def common_bounds(region: Region) -> tuple[float, float]:
    """Between which all coefficients may be the same; the upper below the lower where they may not."""
    low, high = float(region.low.max()), float(region.high.min())
    return low, high if region.max_sum is None else min(high, region.max_sum / len(region.low))
