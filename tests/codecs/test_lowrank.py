"""`lowrank`: as good as the best approximation of that rank, whatever the spectrum; `energy` with no more rank than it takes."""

import math
from functools import cache

import pytest
import torch
from torch import Tensor

from dem_hub.codecs.lowrank import LowRank
from dem_hub.numerics.svd import EXACT_SIZE, _choose_space, truncated_svd

SPECTRA = {
    "steep": lambda i: 0.7**i,
    "inverse": lambda i: 1 / (1 + i),
    "root": lambda i: (1 + i) ** -0.5,
    "flat": lambda i: torch.ones_like(i),
    "exact": lambda i: torch.where(i < 12, 1.0, 1e-4),
}
SHAPES = {"small": (96, 70), "wide": (60, 300), "large": (1100, 1200), "large tall": (1500, 1100)}
assert min(SHAPES["large"]) > EXACT_SIZE


@cache
def orthonormal(rows: int, columns: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=generator, dtype=torch.float32))[0].double()


@cache
def matrix(shape: str, spectrum: str) -> tuple[Tensor, Tensor]:
    """A matrix of known singular values, and those."""
    rows, columns = SHAPES[shape]
    size = min(rows, columns)
    values = 0.01 * SPECTRA[spectrum](torch.arange(size, dtype=torch.float64))
    left, right = ((orthonormal(n, size, n)) for n in (rows, columns))
    return (left * values @ right.T).float(), values


def error(delta: Tensor, rank: int) -> tuple[float, int]:
    parts = LowRank(rank=rank).encode(delta, delta, delta)
    return float((parts["left"].double() @ parts["right"].double() - delta.double()).norm()), parts["left"].shape[1]


@pytest.mark.parametrize("rank", [1, 8, 32])
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("shape", SHAPES)
def test_within_two_per_cent_of_the_best(shape: str, spectrum: str, rank: int) -> None:
    delta, values = matrix(shape, spectrum)
    found, kept = error(delta, rank)
    best = math.sqrt(float(values[rank:].square().sum()))
    assert kept == rank
    # where the rest is at float32's own precision, the best in float32 is what that allows
    assert found <= 1.02 * best + 1e-6 * float(values.norm())


@pytest.mark.parametrize("energy", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("spectrum", ["steep", "inverse", "exact"])
@pytest.mark.parametrize("shape", ["small", "large"])
def test_energy_with_no_more_rank_than_needed(shape: str, spectrum: str, energy: float) -> None:
    delta, values = matrix(shape, spectrum)
    held = values.square().cumsum(0) / values.square().sum()
    least = int((held < energy).sum()) + 1
    left, found, right = truncated_svd(delta, energy=energy)
    lost = float(
        (left.double() * found.double() @ right.double() - delta.double()).square().sum()
        / delta.double().square().sum()
    )
    assert lost <= 1 - energy + 1e-6
    assert least <= len(found) + 1
    assert len(found) <= math.ceil(1.05 * least) + 1


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 7), (7, 1), (1, 1)], ids=str)
def test_rank_above_the_size_is_all_of_it(shape: tuple[int, int]) -> None:
    delta = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found, kept = error(delta, 50)
    assert kept == min(shape)
    assert found <= 1e-6 * float(delta.norm())


@pytest.mark.parametrize("options", [{"rank": 4}, {"energy": 0.5}, {"energy": 1.0}], ids=str)
@pytest.mark.parametrize("size", [8, EXACT_SIZE + 1])
def test_zeros_and_dependent_columns(options: dict[str, float], size: int) -> None:
    codec = LowRank(**options)  # type: ignore[arg-type]
    zero = codec.encode(torch.zeros(size, size), torch.zeros(size, size), torch.zeros(size, size))
    assert not (zero["left"] @ zero["right"]).any()
    single = torch.outer(torch.arange(1.0, size + 1), torch.ones(size))
    parts = codec.encode(single, single, single)
    assert float((parts["left"] @ parts["right"] - single).norm()) <= 1e-5 * float(single.norm())


def test_factors_share_the_singular_values() -> None:
    delta, values = matrix("small", "inverse")
    parts = LowRank(rank=4).encode(delta, delta, delta)
    torch.testing.assert_close(parts["left"].double().norm(dim=0), values[:4].sqrt(), rtol=1e-5, atol=0)
    torch.testing.assert_close(parts["right"].double().norm(dim=1), values[:4].sqrt(), rtol=1e-5, atol=0)


def test_random_state_is_left_alone() -> None:
    delta, _ = matrix("large", "inverse")
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    LowRank(rank=2).encode(delta, delta, delta)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("scale", [1e-12, 1e-20, 1e12])
def test_tiny_and_huge_deltas(scale: float) -> None:
    delta = matrix("small", "steep")[0] * scale
    found, _ = error(delta, 8)
    assert found <= 1.02 * float(torch.linalg.svdvals(delta.double())[8:].norm()) + 1e-6 * float(delta.double().norm())


@pytest.mark.parametrize(
    ("size", "rank"), [(64, 8), (192, 24), (576, 64), (576, 72), (1024, 32), (1024, 128), (1100, 16)]
)
def test_a_few_directions_of_noise(size: int, rank: int) -> None:
    """A flat spectrum is the worst case of an iteration: the error is within 5e-4 of the best, relative."""
    matrix = torch.randn(size, size, generator=torch.Generator().manual_seed(0))
    left, values, right = truncated_svd(matrix, rank=rank)
    best = torch.linalg.svdvals(matrix.double())[rank:].square().sum().sqrt()
    assert (matrix.double() - (left * values).double() @ right.double()).norm() <= (1 + 5e-4) * best


@pytest.mark.parametrize(
    ("rank", "full", "width", "steps"), [(1000, 1030, 258, 5), (1030, 1030, 265, 13), (1, 2000, 8, 13), (8, 9, 10, 2)]
)
def test_a_space_has_room_for_the_rank_and_no_more_than_all(rank: int, full: int, width: int, steps: int) -> None:
    size, block = _choose_space(rank, full, width, steps)
    assert rank <= size <= full
    assert 1 <= block <= width
