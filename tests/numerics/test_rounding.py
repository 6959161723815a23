"""Stochastic rounding: unbiased, always to a neighbour, and drawn by place, so that a slice rounds as the whole does."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dem_hub.numerics import rounding
from dem_hub.numerics.noise import MARGIN, Noise
from dem_hub.numerics.products import Product
from dem_hub.numerics.rounding import round_by_torch, round_compiled, round_into, round_to
from dem_hub.numerics.slices import Index, full_index, index_shape, row_blocks
from tests.support.tiny_models import neighbors

HALVES = [torch.bfloat16, torch.float16]
each_half = pytest.mark.parametrize("dtype", HALVES, ids=["bfloat16", "float16"])


def rounded(values: Tensor, dtype: torch.dtype, seed: int = 0, name: str = "weight") -> Tensor:
    shape = tuple(values.shape)
    return round_to(values.clone(), dtype, seed, name, full_index(shape), shape)


def floats(shape: tuple[int, ...], scale: float = 0.05) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)) * scale


@each_half
@pytest.mark.parametrize("between", [0.01, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("start", [1.0, -1.0, 0.03125, -1000.0, 6e-5], ids=str)
def test_unbiased(dtype: torch.dtype, between: float, start: float) -> None:
    count = 400_000
    low = torch.tensor(start).to(dtype).double()
    step = float(neighbors(low * (1 + 1e-9), dtype)[1 if start > 0 else 0].double() - low)
    values = (low + between * step).float().expand(1000, count // 1000)
    away = float((rounded(values, dtype).double() != low).double().mean())
    # five standard deviations of a mean, and the values that the margin leaves out on fp16's 13 bits
    assert abs(away - between) < 5 * math.sqrt(between * (1 - between) / count) + MARGIN * 2**-13


@pytest.mark.parametrize("sign", [1, -1])
def test_unbiased_in_subnormal_float16(sign: int) -> None:
    values = torch.full((400, 1000), sign * 3.25 * 2.0**-24)
    result = rounded(values, torch.float16).double() * 2.0**24 * sign
    assert set(result.unique().tolist()) == {3.0, 4.0}
    assert abs(float(result.mean()) - 3.25) < 0.005


@pytest.mark.parametrize("value", [2.0**-26, -(2.0**-26), 1e-30, -1e-38], ids=str)
def test_below_the_smallest_float16(value: float) -> None:
    result = rounded(torch.full((100, 1000), value), torch.float16).double()
    assert set(result.abs().unique().tolist()) <= {0.0, 2.0**-24}
    # 1e-30 is below what 13 random bits can tell from 0, which is what it becomes; a quarter of a step comes out in the
    # mean
    assert abs(float(result.mean()) - (value if abs(value) > 1e-20 else 0)) < 0.01 * 2**-24


PARTS = {
    "rows": ((33, 47), (slice(5, 20), slice(0, 47))),
    "columns": ((33, 47), (slice(0, 33), slice(8, 30))),
    "odd start": ((33, 47), (slice(3, 4), slice(7, 30))),
    "odd to odd": ((33, 47), (slice(0, 33), slice(11, 46))),
    "one element": ((33, 47), (slice(32, 33), slice(45, 46))),
    "line": ((1001,), (slice(333, 1000),)),
    "cube": ((3, 7, 11), (slice(1, 3), slice(2, 5), slice(3, 11))),
    "four": ((2, 3, 4, 5), (slice(1, 2), slice(0, 3), slice(2, 4), slice(1, 4))),
    "nothing": ((33, 47), (slice(4, 4), slice(0, 47))),
    "wide": ((2, 70_001), (slice(1, 2), slice(40_001, 69_999))),
}


@each_half
@pytest.mark.parametrize(("shape", "index"), PARTS.values(), ids=PARTS)
def test_a_slice_rounds_as_the_whole(dtype: torch.dtype, shape: tuple[int, ...], index: Index) -> None:
    values = floats(shape)
    part = round_to(values[index].clone(), dtype, 0, "weight", index, shape)
    assert part.shape == index_shape(index)
    assert torch.equal(part, rounded(values, dtype)[index])


@each_half
@pytest.mark.parametrize(("shape", "index"), PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("elements", [1, 100])
def test_a_part_rounds_alike_in_blocks(dtype: torch.dtype, shape: tuple[int, ...], index: Index, elements: int) -> None:
    part = floats(shape)[index]
    noise, result = Noise.of(0, "weight", index, shape, part.device), torch.empty(part.shape, dtype=dtype)
    for rows in row_blocks(full_index(part.shape), elements):
        round_into(result[rows], part[rows], None, noise.part(rows, tuple(part.shape)))
    assert torch.equal(result, round_to(part, dtype, 0, "weight", index, shape))


@each_half
@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (4, 0), (1,), (1, 1), (5, 1), (1, 5), (3, 0, 2)], ids=str)
def test_odd_shapes(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    result = rounded(torch.ones(shape), dtype)
    assert torch.equal(result, torch.ones(shape, dtype=dtype))


@each_half
@pytest.mark.parametrize("scale", [1e-6, 0.05, 1000.0], ids=str)
@pytest.mark.parametrize("wide", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("shape", "index"), PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("block", [24, rounding.BLOCK], ids=["blocks", "at once"])
def test_a_cpu_rounds_as_an_accelerator(
    dtype: torch.dtype,
    scale: float,
    wide: torch.dtype,
    shape: tuple[int, ...],
    index: Index,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rounding, "BLOCK", block)
    part = floats(shape, scale)[index].to(wide)
    part.masked_fill_(part.abs() < scale / 10, -0.0)
    here, there = (torch.empty(part.shape, dtype=dtype) for _ in range(2))
    noise = Noise.of(3, "weight", index, shape, part.device)
    if part.numel():
        assert round_compiled(here, part, None, noise) == float(part.float().abs().max())
        round_by_torch(there, part, noise)
    assert torch.equal(here.view(torch.int16), there.view(torch.int16))


@each_half
@pytest.mark.parametrize("start", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("rank", [0, 1, 4, 7, 130])
@pytest.mark.parametrize(
    "index", [(slice(0, 1), slice(0, 1)), (slice(2, 9), slice(1, 300)), (slice(0, 13), slice(6, 134))], ids=str
)
def test_a_product_is_part_of_the_sum(dtype: torch.dtype, start: str, rank: int, index: Index) -> None:
    generator, (rows, columns) = torch.Generator().manual_seed(0), index_shape(index)
    # small multiples of a power of two: no order of summation rounds them
    left, right = (
        torch.randint(-9, 10, shape, generator=generator).double() / 128 for shape in ((rows, rank), (rank, columns))
    )
    base = floats((rows, columns)).to(dtype).to(getattr(torch, start))
    total = base.double() + left @ right
    noise = Noise.of(0, "weight", index, (20, 300), base.device)
    result, expected = (torch.empty(base.shape, dtype=dtype) for _ in range(2))
    assert round_into(result, base.clone(), Product.of(left.float(), right), noise)
    round_by_torch(expected, total, noise)
    assert torch.equal(result, expected)


HARD: dict[str, Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]] = {
    "as fine-tunes are": lambda base, left, right: (base, left, right),
    "large": lambda base, left, right: (base, 300 * left, 30 * right),
    "no base": lambda base, left, right: (0 * base, left, right),
    "nearly cancels": lambda base, left, right: (
        1e-5 * base - left.float().double() @ right,
        left.float().double(),
        right,
    ),
    "no rows, no columns": lambda base, left, right: (
        base,
        left * (torch.arange(len(left)) % 3 > 0)[:, None],
        right * (right[0] > 0),
    ),
    "on the grid": lambda base, left, right: (base, 1e-9 * left, right),
    "below float32": lambda base, left, right: (0 * base, 1e-30 * left, 1e-20 * right),
    "unequal": lambda base, left, right: (base, 1e-25 * left, 1e25 * right),
    "far beyond": lambda base, left, right: (base, 1e-45 * left, 1e45 * right),
    "one far beyond": lambda base, left, right: (base, 1e-45 * left, right.index_fill(1, torch.tensor([0, 277]), 1e44)),
}


@each_half
@pytest.mark.parametrize("rank", [1, 4, 48, 130, 300])
@pytest.mark.parametrize("case", HARD.values(), ids=HARD)
@pytest.mark.parametrize("doubled", [False, True], ids=["float32", "float64"])
def test_a_product_rounds_as_in_float64(
    dtype: torch.dtype, rank: int, case: Callable[..., tuple[Tensor, Tensor, Tensor]], doubled: bool
) -> None:
    generator = torch.Generator().manual_seed(rank)
    left, right = (torch.randn(shape, generator=generator).double() for shape in ((203, rank), (rank, 278)))
    base, left, right = case(floats((203, 278)).bfloat16().double(), 0.02 * left, 0.02 * right)
    noise = Noise.of(0, "weight", (slice(0, 203), slice(1, 279)), (203, 279), base.device)
    result, expected = (torch.empty(base.shape, dtype=dtype) for _ in range(2))
    if not doubled:
        left = left.float()
    assert round_into(result, base.clone(), Product.of(left, right), noise)
    round_by_torch(expected, base + left.double() @ right, noise)
    assert torch.equal(result.view(torch.int16), expected.view(torch.int16))


@each_half
@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38], ids=str)
@pytest.mark.parametrize("side", [0, 1], ids=["left", "right"])
@pytest.mark.parametrize("left", [torch.float32, torch.float64], ids=str)
def test_tells_factors_that_lead_out_of_the_range(
    dtype: torch.dtype, value: float, side: int, left: torch.dtype
) -> None:
    factors = torch.full((5, 3), 9.0, dtype=left), torch.full((3, 300), 9.0, dtype=torch.float64)
    factors[side][1, 2] = value
    noise = Noise.of(0, "weight", (slice(0, 5), slice(0, 300)), (5, 300), factors[0].device)
    assert not round_into(torch.empty(5, 300, dtype=dtype), torch.ones(5, 300).to(dtype), Product.of(*factors), noise)


@each_half
def test_the_error_of_a_product_refuses_nothing(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    base = torch.zeros(4, 4, dtype=torch.float64)
    base[0, 0] = largest
    factors = (
        torch.full((4, 64), 1e4),
        torch.tensor([1e4, -1e4]).double().repeat(32)[:, None].expand(64, 4),
    )  # whose product is 0
    result, noise = torch.empty(4, 4, dtype=dtype), Noise.of(0, "weight", full_index((4, 4)), (4, 4), base.device)
    assert round_into(result, base, Product.of(*factors), noise)
    assert torch.equal(result.double(), base)


@pytest.mark.parametrize("dtype", [*HALVES, torch.float32], ids=str)
@pytest.mark.parametrize("noisy", [True, False], ids=["stochastic", "nearest"])
@pytest.mark.parametrize("column", [0, 1, 3, 6])
@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "beyond", "3 ulps", "2 ulps", "edge"], ids=str)
def test_tells_what_is_beyond_the_range(
    dtype: torch.dtype, noisy: bool, column: int, first: int, value: float | str
) -> None:
    largest = torch.finfo(dtype).max
    total = torch.zeros(3, 7, dtype=torch.float64)
    places = {
        "beyond": -largest * (1 + 2**-20),
        "3 ulps": -largest * (1 + 3 * 2**-24),
        "2 ulps": -largest * (1 + 2**-23),
        "edge": -largest,
    }
    total[1, column] = places.get(value, value)  # type: ignore[arg-type]
    noise = Noise.of(0, "weight", (slice(0, 3), slice(first, first + 7)), (3, 8), total.device) if noisy else None
    result = torch.empty(total.shape, dtype=dtype)
    known = value == "edge" or (value == "2 ulps" and dtype in HALVES)
    assert round_into(result, total, None, noise) == known
    if known:
        assert result[1, column] == -largest


@each_half
def test_seed_and_name_count(dtype: torch.dtype) -> None:
    values = floats((50, 50))
    results = [rounded(values, dtype), rounded(values, dtype, seed=1), rounded(values, dtype, name="other")]
    assert torch.equal(results[0], rounded(values, dtype))
    assert all(not torch.equal(results[i], results[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


@each_half
def test_every_value_of_the_target_stays(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    assert torch.equal(rounded(every.float(), dtype), every)


@each_half
@pytest.mark.parametrize("ulps", [-2, -1, 1, 2])
def test_a_sum_that_missed_a_value_by_two_ulps_is_that_value(dtype: torch.dtype, ulps: int) -> None:
    values = floats((200, 200)).to(dtype)
    missed = (values.float().view(torch.int32) + ulps).view(torch.float32)
    assert torch.equal(rounded(missed, dtype), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wide_targets_are_rounded_to_nearest(dtype: torch.dtype) -> None:
    values = floats((10, 10)).double()
    assert torch.equal(rounded(values, dtype), values.to(dtype))


@each_half
@settings(max_examples=200, deadline=None, derandomize=True)
@given(values=st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=20), seed=st.integers(0, 2**40))
def test_always_one_of_two_neighbors(dtype: torch.dtype, values: list[float], seed: int) -> None:
    exact = torch.tensor(values, dtype=torch.float32)
    result = rounded(exact, dtype, seed)
    low, high = neighbors(exact.double(), dtype)
    assert bool(((result == low) | (result == high)).all())


@settings(max_examples=200, deadline=None, derandomize=True)
@given(bits=st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20))
def test_any_float32_to_bfloat16(bits: list[int]) -> None:
    exact = torch.tensor(bits, dtype=torch.int32).view(torch.float32)
    exact = exact[exact.abs() <= torch.finfo(torch.bfloat16).max]
    result = rounded(exact, torch.bfloat16)
    low, high = neighbors(exact.double(), torch.bfloat16)
    assert bool(((result == low) | (result == high)).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_neighbors_by_brute_force(dtype: torch.dtype) -> None:
    """The reference itself: against all values of the 16-bit types, and torch's own for float32."""
    values = torch.cat(
        [floats((200,)).double(), torch.tensor([0.0, -0.0, 1.0, -1.0, 1e-7, -1e-7, 65504.0, 3e-8], dtype=torch.float64)]
    )
    low, high = neighbors(values, dtype)
    if dtype == torch.float32:
        near = values.float()
        down, up = (torch.nextafter(near, torch.tensor(edge)) for edge in (-math.inf, math.inf))
        expected_low = torch.where(near.double() <= values, near, down)
        expected_high = torch.where(near.double() >= values, near, up)
    else:
        every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        every = every[every.isfinite()].double().unique()
        expected_low = every[torch.searchsorted(every, values, right=True) - 1].to(dtype)
        expected_high = every[torch.searchsorted(every, values).clamp(max=len(every) - 1)].to(dtype)
    assert torch.equal(low, expected_low)
    assert torch.equal(high, expected_high)
