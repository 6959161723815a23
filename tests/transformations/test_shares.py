"""The matrices of RegMean, against the formula in float64 on whole moments."""

import pytest
import torch
from torch import Tensor

from dem_hub.errors import ConfigError
from dem_hub.input_statistics.moments import Moments
from dem_hub.transformations.shares import Shares

SIZE = 24


def some_moments(seed: int, rank: int = 5) -> Moments:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))[0][:, :rank]
    values = torch.arange(rank, 0, -1, dtype=torch.float64) ** 2
    return Moments(vectors, values, torch.rand(SIZE, generator=generator, dtype=torch.float64) * 0.1)


def dense_shares(moments: list[Moments], ridge: float, weights: list[float]) -> list[Tensor]:
    """Return w_i G_i (sum_j w_j G_j)^-1 as RegMean's paper writes it, but for the weights."""
    mean = sum(float(item.dense().diagonal().mean()) for item in moments) / len(moments)
    ridged = [item.dense() + ridge * mean * torch.eye(SIZE, dtype=torch.float64) for item in moments]
    grams = [weight * gram for weight, gram in zip(weights, ridged, strict=True)]
    return [gram @ torch.linalg.inv(sum(grams)) for gram in grams]  # type: ignore[arg-type]


def applied(shares: Shares, place: int) -> Tensor:
    return shares.apply(place, torch.eye(SIZE, dtype=torch.float64))


@pytest.mark.parametrize("weights", [[1.0, 1.0], [1.0, 1.0, 1.0], [0.1, 1.9], [0.5, 1.5, 1.0, 0.2, 1.8]])
@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1e-3, 1.0])
def test_shares_are_those_of_the_formula(weights: list[float], ridge: float) -> None:
    moments = [some_moments(seed) for seed in range(len(weights))]
    shares = Shares.of(moments, ridge, weights)
    for place, expected in enumerate(dense_shares(moments, ridge, weights)):
        torch.testing.assert_close(applied(shares, place), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ranks", [(5, 5), (0, 5), (SIZE, 3)])
def test_shares_sum_to_the_whole(ranks: tuple[int, int]) -> None:
    moments = [some_moments(seed, rank) for seed, rank in enumerate(ranks)]
    shares = Shares.of(moments, 1e-3, [0.5, 1.5])
    total = applied(shares, 0) + applied(shares, 1)
    torch.testing.assert_close(total, torch.eye(SIZE, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_identical_distributions_share_equally(count: int) -> None:
    shares = Shares.of([some_moments(0)] * count, 1e-3, [1.0] * count)
    expected = torch.eye(SIZE, dtype=torch.float64) / count
    torch.testing.assert_close(applied(shares, 0), expected, rtol=0, atol=1e-9)


def test_inputs_in_disjoint_subspaces_leave_every_vector_whole() -> None:
    rotation = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(3)).double())[0]
    zeros = torch.zeros(SIZE, dtype=torch.float64)
    halves = [rotation[:, : SIZE // 2], rotation[:, SIZE // 2 :]]
    moments = [Moments(half, torch.ones(SIZE // 2, dtype=torch.float64), zeros) for half in halves]
    shares = Shares.of(moments, 1e-9, [0.5, 1.5])
    for place, half in enumerate(halves):
        torch.testing.assert_close(shares.apply(place, half.T), half.T, rtol=0, atol=1e-6)


def test_a_direction_that_no_distribution_has_is_shared_equally() -> None:
    diagonal = torch.ones(SIZE, dtype=torch.float64)
    diagonal[4] = 0
    shares = Shares.of([Moments.of_diagonal(diagonal), Moments.of_diagonal(2 * diagonal)], 1e-3, [1.0, 1.0])
    assert float(applied(shares, 0)[4, 4]) == pytest.approx(1 / 2)
    assert float(applied(shares, 0)[0, 0]) == pytest.approx(1 / 3, rel=1e-3)


@pytest.mark.parametrize("all_are_unused", [True, False])
def test_a_layer_that_a_distribution_did_not_reach(all_are_unused: bool) -> None:
    zeros = Moments.of_diagonal(torch.zeros(SIZE, dtype=torch.float64))
    other = zeros if all_are_unused else some_moments(1)
    first = applied(Shares.of([None, other], 1e-9, [1.0, 1.0]), 0)
    expected = torch.eye(SIZE, dtype=torch.float64) / 2 if all_are_unused else torch.zeros_like(first)
    torch.testing.assert_close(first, expected, rtol=0, atol=1e-6)


def test_moments_of_two_sizes_are_refused() -> None:
    small = Moments.of_diagonal(torch.ones(3, dtype=torch.float64))
    with pytest.raises(ConfigError, match=r"sizes \[3, 24\]"):
        Shares.of([small, some_moments(0)], 1e-3, [1.0, 1.0])
