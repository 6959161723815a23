"""Regions: what is refused, and the nearest point inside."""

import pytest
import torch

from dem_hub.errors import ConfigError
from dem_hub.search.solve.region import Region


@pytest.mark.parametrize(
    ("bounds", "max_sum", "message"),
    [
        ([(1, 0)], None, "each must be a finite \\(lower, upper\\) pair"),
        ([(0, float("inf"))], None, "each must be a finite"),
        ([(0.5, 1), (0.5, 1)], 0.9, "max_sum is 0.9, and the lower bounds sum to 1.0"),
    ],
)
def test_regions_that_are_refused(bounds: list[tuple[float, float]], max_sum: float | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Region.of(bounds, max_sum)


@pytest.mark.parametrize(
    ("point", "inside"), [((2.0, -1.0), (1.0, 0.0)), ((1.0, 1.0), (0.5, 0.5)), ((0.2, 0.3), (0.2, 0.3))]
)
def test_clip(point: tuple[float, float], inside: tuple[float, float]) -> None:
    region = Region.of([(0, 1)] * 2, 1.0)
    assert region.clip(torch.tensor(point, dtype=torch.float64)).tolist() == pytest.approx(inside)
    assert region.contains(region.clip(torch.tensor(point, dtype=torch.float64)))
