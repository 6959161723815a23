"""The expected loss over two coefficients, on a grid: what the mixer's page and the pictures of a search draw."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.search.prediction import Prediction

# Bands of color. Chosen by hand: with more, one cannot tell neighbours apart.
BANDS = 12


@dataclass(frozen=True)
class Landscape:
    """The objective that is expected on a grid of two coefficients, while the others stay.

    `levels`, (C,), are the places along both axes; `values`, (C, C) in float64, are in a row for each place upwards;
    `points`, (C * C, N), are all coefficients of the grid's points, row by row.
    """

    levels: Tensor
    values: Tensor
    points: Tensor

    @classmethod
    def of(cls, prediction: Prediction, point: Sequence[float], axes: tuple[int, int], levels: Tensor) -> "Landscape":
        """Return the landscape of what a search knows.

        Args:
            prediction ([`Prediction`]): What the search knows.
            point (`Sequence[float]`): The coefficients; two of them are replaced.
            axes (`tuple[int, int]`): The numbers of the two vectors, to the right and upwards.
            levels (`Tensor`): Places along both axes, (C,) in float64.
        """
        count = len(levels)
        grid = torch.tensor(point, dtype=torch.float64, device="cpu").repeat(count, count, 1)
        grid[..., axes[0]] = levels
        grid[..., axes[1]] = levels.unsqueeze(1)
        points = grid.flatten(0, 1)
        return cls(levels, prediction.values(points).reshape(count, count), points)

    @property
    def lowest(self) -> float:
        """The lowest value on the grid."""
        return float(self.values.min())

    @property
    def highest(self) -> float:
        """The highest value on the grid."""
        return float(self.values.max())

    @property
    def bands(self) -> Tensor:
        """The number of the band of each value, (C, C), from 0. Bands are narrow where losses are low."""
        share = (self.values - self.lowest) / max(self.highest - self.lowest, 1e-12)
        return (share.sqrt() * BANDS).long().clamp(max=BANDS - 1)

    @property
    def edges(self) -> list[float]:
        """The values between the bands, with both ends."""
        width = max(self.highest - self.lowest, 1e-12)
        return [self.lowest + width * (number / BANDS) ** 2 for number in range(BANDS + 1)]
