"""A number with its uncertainty, as pictures show it."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A value, and how far to either side of it the interval goes; `error` is `None` where nothing is known of it."""

    value: float
    error: float | None = None

    @property
    def has_interval(self) -> bool:
        """True if there is an interval to draw."""
        return self.error is not None and math.isfinite(self.error) and self.error > 0
