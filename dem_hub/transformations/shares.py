"""The matrices of RegMean as operators: which share of a layer's input directions each vector gets."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.errors import ConfigError
from dem_hub.input_statistics.moments import Moments


@dataclass(frozen=True)
class Shares:
    """The matrices M_i = G_i (sum_j G_j)^-1 of one layer, as operators.

    With G_j = U_j L_j U_j^T + D_j, the sum is D^(1/2) (1 + V V^T) D^(1/2) for D = sum_j D_j and V = D^(-1/2) [U_j
    L_j^(1/2)], so that only a matrix of the size of all ranks together is inverted:

        (1 + V V^T)^-1 = 1 - V (1 + V^T V)^-1 V^T        (Woodbury's identity)

    Args:
        moments (`tuple[Moments, ...]`): G_i of each distribution, with the ridge and times its weight, in float64.
        scale (`Tensor`): D^(-1/2), (D,).
        factors (`Tensor`): V, (D, K).
        cholesky (`Tensor`): The Cholesky factor of 1 + V^T V, (K, K).
    """

    moments: tuple[Moments, ...]
    scale: Tensor
    factors: Tensor
    cholesky: Tensor

    @classmethod
    def of(cls, known: Sequence[Moments | None], ridge: float, weights: Sequence[float]) -> "Shares":
        """Return the shares of distributions whose moments are known; of one that did not reach the layer they are 0.

        Args:
            known (`Sequence[Moments | None]`): The moments of each distribution, of which one at least is known.
            ridge (`float`): What is added to each diagonal, relative to the mean element of all diagonals.
            weights (`Sequence[float]`): How much the errors on each distribution count.
        """
        sizes = {item.size for item in known if item is not None}
        if len(sizes) != 1:
            raise ConfigError(f"Input statistics of one layer are of the sizes {sorted(sizes)}. Gather them again.")
        size = sizes.pop()
        zeros = next(item.rest for item in known if item is not None).new_zeros(size)
        present = [item or Moments.of_diagonal(zeros) for item in known]
        mean = sum(float(item.diagonal().mean()) for item in present) / len(present)
        added = ridge * mean if mean > 0 else 1.0
        moments = tuple(
            Moments(item.vectors, weight * item.values, weight * (item.rest + added))
            for item, weight in zip(present, weights, strict=True)
        )
        scale = torch.stack([item.rest for item in moments]).sum(0).rsqrt()
        factors = scale[:, None] * torch.cat([item.vectors * item.values.sqrt() for item in moments], dim=1)
        core = factors.T @ factors + torch.eye(factors.shape[1], dtype=factors.dtype, device=factors.device)
        return cls(moments, scale, factors, torch.linalg.cholesky(core))

    def apply(self, place: int, rows: Tensor) -> Tensor:
        """Return rows @ M_i, (R, D), in float64.

        Args:
            place (`int`): i, the vector.
            rows (`Tensor`): (R, D), of any float dtype, on any device.
        """
        moments = self.moments[place]
        wide = rows.to(self.scale)
        weighted = ((wide @ moments.vectors) * moments.values) @ moments.vectors.T + wide * moments.rest
        scaled = weighted * self.scale
        solved = torch.cholesky_solve((scaled @ self.factors).T, self.cholesky)
        return (scaled - solved.T @ self.factors.T) * self.scale
