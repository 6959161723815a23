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


@pytest.mark.parametrize("count", [1, 2, 3, 10, 100])
@pytest.mark.parametrize("low", [0.0, 0.1, -0.7, 1 / 3, 1e-300])
def test_clip_where_the_lower_bounds_take_all_of_the_sum(count: int, low: float) -> None:
    lowest = torch.full((count,), low, dtype=torch.float64)
    region = Region.of([(low, low + 1)] * count, float(lowest.sum()))
    smallest = torch.nextafter(lowest, torch.full_like(lowest, torch.inf))
    for point in (lowest, smallest, lowest + 1e-16, lowest + 0.5, lowest + 7):
        clipped = region.clip(point)
        assert region.contains(clipped)
        assert bool((clipped >= lowest).all())


def test_clip_between_the_largest_numbers() -> None:
    region = Region.of([(0, 1e308), (0, 1e308)], 1.0)
    clipped = region.clip(torch.full((2,), 1e308, dtype=torch.float64))
    assert region.contains(clipped)
    assert bool(torch.isfinite(clipped).all())
