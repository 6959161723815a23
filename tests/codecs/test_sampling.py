"""Which elements are kept: one of each group, the same ones for ever, for all of a tensor or a part of it."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dem_hub.codecs.sampling import count_kept, draw, scatter, seed_of
from dem_hub.numerics.slices import full_index

CPU = torch.device("cpu")


def test_the_draw_is_frozen() -> None:
    """Files depend on it: what is here must never change."""
    sample = draw(full_index((3, 20)), (3, 20), 6, 7, CPU)
    assert sample.positions.tolist() == [[1, 3, 6, 12, 15, 17], [2, 5, 7, 11, 13, 17], [2, 4, 8, 12, 13, 16]]
    assert sample.sizes.tolist() == [3, 3, 4, 3, 3, 4]


@pytest.mark.parametrize(("columns", "kept"), [(20, 6), (7, 7), (100, 1), (64, 63), (1000, 333)])
def test_one_of_each_group(columns: int, kept: int) -> None:
    sample = draw(full_index((50, columns)), (50, columns), kept, 0, CPU)
    bounds = [j * columns // kept for j in range(kept + 1)]
    assert sample.sizes.tolist() == [stop - start for start, stop in pairwise(bounds)]
    assert bool((sample.positions >= torch.tensor(bounds[:-1])).all())
    assert bool((sample.positions < torch.tensor(bounds[1:])).all())


def test_all_elements_are_as_likely() -> None:
    counts = torch.zeros(30)
    for seed in range(20):
        sample = draw(full_index((500, 30)), (500, 30), 7, seed, CPU)
        counts += torch.bincount(
            sample.positions.flatten(), weights=sample.sizes.expand(500, 7).flatten(), minlength=30
        )
    torch.testing.assert_close(
        counts / 10_000, torch.ones(30), rtol=0, atol=0.08
    )  # 4 standard deviations of sqrt(4 / 10,000)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_part_is_drawn_as_the_whole(data: st.DataObject) -> None:
    columns = data.draw(st.integers(1, 300))
    kept = data.draw(st.integers(1, columns))
    start = data.draw(st.integers(0, columns))
    stop = data.draw(st.integers(start, columns))
    shape = (3, 4, columns)
    whole = draw(full_index(shape), shape, kept, 1, CPU)
    marks = scatter(torch.arange(12 * kept, dtype=torch.float32).reshape(12, kept) + 1, whole.positions, columns)
    index = (slice(1, 3), slice(0, 2), slice(start, stop))
    part = draw(index, shape, kept, 1, CPU)
    rows = torch.tensor([4, 5, 8, 9])
    numbers = torch.arange(12 * kept, dtype=torch.float32).reshape(12, kept)[rows][:, part.groups] + 1
    found = scatter(numbers, part.positions, stop - start)
    assert torch.equal(found, marks[rows][:, start:stop])


def test_count_kept() -> None:
    assert [count_kept(100, density) for density in (0.001, 0.1, 0.999, 1.0)] == [1, 10, 100, 100]


def test_seeds() -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(0))
    seeds = {seed_of("a", values), seed_of("b", values), seed_of("a", values + 1), seed_of("a", values, 1)}
    assert len(seeds) == 4
    assert seed_of("a", values) == seed_of("a", values.clone())
    assert all(0 <= seed < 2**32 for seed in seeds)
