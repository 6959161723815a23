"""A Gaussian prior on coefficients, as the quadratic penalty that it adds to the objective.

It has two terms. One draws the coefficients to one another, so that two vectors that are nearly the same share what
they have in common and the curvature of a search is never singular. The other draws them to a fixed center; a damped
Newton step uses it, too.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# The least sum of two strengths that is divided by: 0 / 1e-300 is 0, so the center of a coefficient with no strength
# does not matter.
_TINY = 1e-300


@dataclass(frozen=True)
class Prior:
    """A penalty on N coefficients: half of strength times squared distance, in nats.

    Args:
        common_strength (`float`): Strength towards the mean of the coefficients.
        center (`Tensor`, *optional*): The point, (N,) in float64, that the second term draws to.
        center_strengths (`Tensor`, *optional*): Strength towards `center`, (N,) in float64, one for each coefficient.
    """

    common_strength: float = 0.0
    center: Tensor | None = None
    center_strengths: Tensor | None = None

    def combined_with(self, center: Tensor, strengths: Tensor) -> "Prior":
        """Return a prior whose penalty is that of this one plus a pull towards another center, apart from a constant.

        Two quadratics around two centers are one around a center between them.

        Args:
            center (`Tensor`): (N,), float64.
            strengths (`Tensor`): (N,), float64.
        """
        if self.center is None or self.center_strengths is None:
            return Prior(self.common_strength, center, strengths)
        total = self.center_strengths + strengths
        mean = (self.center_strengths * self.center + strengths * center) / total.clamp(min=_TINY)
        return Prior(self.common_strength, mean, total)

    def __call__(self, point: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return the penalty of a point, its gradient, (N,), and its curvature, (N, N)."""
        count = len(point)
        from_mean = torch.eye(count, dtype=torch.float64, device="cpu") - 1 / count
        curvature = self.common_strength * from_mean
        gradient = curvature @ point
        value = float(point @ gradient) / 2
        if self.center is not None and self.center_strengths is not None:
            step = point - self.center
            curvature = curvature + torch.diag(self.center_strengths)
            gradient = gradient + self.center_strengths * step
            value += float(step @ (self.center_strengths * step)) / 2
        return value, gradient, curvature
