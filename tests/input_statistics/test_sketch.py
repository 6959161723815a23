"""Sketches of second moments, against the moments of all inputs at once in float64."""

import pytest
import torch

from dem_hub.input_statistics.sketch import MomentSketch

CPU = torch.device("cpu")
TOKENS = 500


def inputs_of_decaying_spectrum(size: int, seed: int) -> torch.Tensor:
    """Return inputs whose directions get weaker quickly, as those of a model's layers do."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    strengths = torch.arange(1, size + 1).float() ** -1.5
    return torch.randn(TOKENS, size, generator=generator) * strengths @ directions.T


def sketched(inputs: torch.Tensor, rank: int) -> MomentSketch:
    sketch = MomentSketch(inputs.shape[1], rank, CPU)
    for piece in inputs.split(64):
        sketch.add(piece)
    return sketch


@pytest.mark.parametrize("size", [7, 16, 48])
def test_a_sketch_of_full_rank_is_exact(size: int) -> None:
    inputs = inputs_of_decaying_spectrum(size, 0)
    exact = inputs.double().T @ inputs.double() / TOKENS
    torch.testing.assert_close(sketched(inputs, size).moments(TOKENS).dense(), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 8, 16])
def test_the_diagonal_is_exact_and_the_error_near_the_best(rank: int) -> None:
    inputs = inputs_of_decaying_spectrum(96, 1)
    exact = inputs.double().T @ inputs.double() / TOKENS
    moments = sketched(inputs, rank).moments(TOKENS)
    torch.testing.assert_close(moments.diagonal(), exact.diagonal(), rtol=1e-5, atol=0)
    assert moments.vectors.shape == (96, rank)
    values, vectors = torch.linalg.eigh(exact)
    best = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T
    held = (moments.vectors * moments.values) @ moments.vectors.T
    # Tropp et al. (theorem 4.1) expect an error of 1 + K / (W - K - 1) times the best, with W = 4 K columns.
    assert (exact - held).norm() < 1.5 * (exact - best).norm()


def test_what_is_left_of_the_diagonal_is_never_negative() -> None:
    inputs = torch.zeros(TOKENS, 32)
    inputs[:, 3] = 100.0
    moments = sketched(inputs, 4).moments(TOKENS)
    assert bool((moments.rest >= 0).all())
    assert float(moments.diagonal()[3]) == pytest.approx(10_000, rel=1e-5)


@pytest.mark.parametrize("size_of_the_weak", [0.0, 1e-7])
def test_a_dead_or_weak_feature_takes_nothing_from_the_others(size_of_the_weak: float) -> None:
    inputs = inputs_of_decaying_spectrum(96, 1)
    inputs[:, 7] *= size_of_the_weak
    exact = inputs.double().T @ inputs.double() / TOKENS
    moments = sketched(inputs, 8).moments(TOKENS)
    torch.testing.assert_close(moments.diagonal(), exact.diagonal(), rtol=1e-5, atol=1e-12)
    values, vectors = torch.linalg.eigh(exact)
    best = (vectors[:, -8:] * values[-8:]) @ vectors[:, -8:].T
    held = (moments.vectors * moments.values) @ moments.vectors.T
    assert (exact - held).norm() < 1.5 * (exact - best).norm()


def test_inputs_of_zeros_have_no_directions() -> None:
    moments = sketched(torch.zeros(10, 32), 4).moments(10)
    assert moments.vectors.shape == (32, 0)
    assert not moments.diagonal().any()


@pytest.mark.parametrize("tokens", [1, 2, 5])
def test_fewer_tokens_than_directions(tokens: int) -> None:
    inputs = inputs_of_decaying_spectrum(32, 2)[:tokens]
    exact = inputs.double().T @ inputs.double() / tokens
    # Sums are in float32, and the shift is of its precision.
    tolerance = 1e-4 * float(exact.abs().max())
    torch.testing.assert_close(sketched(inputs, 8).moments(tokens).dense(), exact, rtol=0, atol=tolerance)


def test_the_memory_of_a_sketch_does_not_grow() -> None:
    sketch = MomentSketch(4096, 64, CPU)
    assert sketch.product.shape == (4096, 192)
    assert sketch.tests is MomentSketch(4096, 64, CPU).tests
    assert sketch.tests is not MomentSketch(4096, 32, CPU).tests


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("rank", [4, 48])
def test_torchs_default_dtype_does_not_matter(dtype: torch.dtype, rank: int) -> None:
    """Of a sketch, and of one that is as large as the matrix."""
    inputs = inputs_of_decaying_spectrum(48, 2)
    expected = sketched(inputs, rank).moments(TOKENS)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        found = sketched(inputs, rank).moments(TOKENS)
    finally:
        torch.set_default_dtype(before)
    assert torch.equal(found.dense(), expected.dense())
