"""The region that a search may use: bounds on every coefficient, and a limit on their sum."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.errors import ConfigError

# Of a coefficient, or of their sum: `contains` accepts what rounding in float64 adds, which is some 1e-16 for
# coefficients near 1. The value was chosen by hand; anything well above rounding and below what changes a loss would
# do.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Region:
    """Points between `low` and `high`, (N,) in float64 each, whose coefficients sum to at most `max_sum`."""

    low: Tensor
    high: Tensor
    max_sum: float | None = None

    @classmethod
    def of(cls, bounds: Sequence[tuple[float, float]], max_sum: float | None = None) -> "Region":
        """Return the region between a (lower, upper) pair for each coefficient.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If a bound is not finite, an upper bound is below its lower one, or the
                lower bounds already sum to more than `max_sum`.
        """
        low, high = torch.tensor(bounds, dtype=torch.float64, device="cpu").reshape(-1, 2).T
        is_finite = torch.isfinite(low).all() and torch.isfinite(high).all()
        if not bool((low <= high).all()) or not bool(is_finite):
            raise ConfigError(f"bounds are {list(bounds)}; each must be a finite (lower, upper) pair.")
        if max_sum is not None and not float(low.sum()) <= max_sum:
            raise ConfigError(
                f"max_sum is {max_sum}, and the lower bounds sum to {float(low.sum())}. Allow a larger sum."
            )
        return cls(low, high, max_sum)

    def clip(self, point: Tensor) -> Tensor:
        """Return the nearest point between the bounds.

        If its sum is too large, it is moved straight towards the lower bounds until the sum is `max_sum`.
        """
        inside = point.clamp(self.low, self.high)
        if self.max_sum is None:
            return inside
        excess = float(inside.sum()) - self.max_sum
        if excess <= 0:
            return inside
        room = inside - self.low
        whole = float(room.sum())
        # What is to go is all that there is if rounding, or bounds near the largest float64, left nothing else.
        if whole <= excess:
            return self.low.clone()
        return inside - room * (excess / whole)

    def contains(self, point: Tensor) -> bool:
        """Return whether a point lies in the region, apart from rounding."""
        inside = bool(((point >= self.low - _TOLERANCE) & (point <= self.high + _TOLERANCE)).all())
        return inside and (self.max_sum is None or float(point.sum()) <= self.max_sum + _TOLERANCE)


def common_bounds(region: Region) -> tuple[float, float]:
    """Return the lowest and highest coefficient that all vectors can share.

    The range is empty (low > high) if there is no such coefficient.
    """
    low = float(region.low.max())
    high = float(region.high.min())
    if region.max_sum is not None:
        high = min(high, region.max_sum / len(region.low))
    return low, high
