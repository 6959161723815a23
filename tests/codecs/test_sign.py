"""`sign` and `lrsign` against references in numpy, and what they promise of a sum."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import InMemory
from dem_hub.codecs import Codec, to_dense
from dem_hub.codecs.layout import layout_bytes
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.lrsign import LRSign
from dem_hub.codecs.random import Random
from dem_hub.codecs.sign import Sign, code_bits, noise
from dem_hub.numerics.slices import full_index


def through(codec: Codec, delta: Tensor) -> Tensor:
    parts = {name: InMemory(part) for name, part in codec.encode(delta, delta, delta).items()}
    return to_dense(codec.decode(parts, tuple(delta.shape), full_index(delta.shape), InMemory(delta)), delta)


@pytest.fixture
def delta() -> Tensor:
    """A few strong directions and a long tail, as a full fine-tune has them."""
    generator = torch.Generator().manual_seed(0)
    strong = torch.randn(200, 8, generator=generator) @ torch.randn(8, 300, generator=generator)
    return 1e-4 * (strong + 2 * torch.randn(200, 300, generator=generator))


def test_sign_is_sign_times_the_unbiased_scale(delta: Tensor) -> None:
    values = delta.double().numpy()
    scale = (values**2).sum(axis=1) / np.abs(values).sum(axis=1)
    expected = np.sign(values) * torch.tensor(scale).bfloat16().double().numpy()[:, None]
    np.testing.assert_allclose(through(Sign(), delta).numpy(), expected, rtol=2**-8)


def test_zeros_get_alternating_signs() -> None:
    delta = torch.zeros(4, 10)
    delta[:, ::3] = 1e-3
    decoded = through(Sign(), delta)
    zeros = decoded[delta == 0]
    assert float(zeros.sum()) == pytest.approx(0, abs=2 * float(zeros.abs().max()))
    assert bool((decoded[delta > 0] > 0).all())


@pytest.mark.parametrize("group", [2, 3, 7, 8, 100])
def test_of_each_group_the_largest_is_kept(delta: Tensor, group: int) -> None:
    """Against a loop in numpy; the last group is shorter."""
    values = delta.double().numpy()
    expected = np.zeros_like(values)
    for row, kept in zip(values, expected, strict=True):
        for start in range(0, len(row), group):
            column = start + np.abs(row[start : start + group]).argmax()
            kept[column] = np.sign(row[column])
        kept *= torch.tensor((row**2).sum() / np.abs(row * kept).sum()).bfloat16().item()
    np.testing.assert_allclose(through(Sign(group), delta).numpy(), expected, rtol=2**-7)


@pytest.mark.parametrize("group", [1, 2, 3, 6, 8, 100, 128])
@pytest.mark.parametrize("columns", [slice(0, 300), slice(5, 290), slice(128, 129), slice(99, 99)], ids=str)
def test_slices_have_the_bits_of_sign_times_scale(delta: Tensor, group: int, columns: slice) -> None:
    """The reference takes the codes apart bit by bit. A row of zeros has the scale 0."""
    delta[3] = 0
    parts = Sign(group).encode(delta, delta, delta)
    bits = np.unpackbits(parts["sign"].numpy(), axis=1, bitorder="little")
    expected = torch.zeros(200, 300)
    for number in range(-(-300 // group)):
        code = bits[:, number * code_bits(group) : (number + 1) * code_bits(group)]
        places = number * group + code[:, 1:] @ (1 << np.arange(code.shape[1] - 1))
        expected[np.arange(200), places] += (torch.from_numpy(code[:, 0]).float() * 2 - 1) * parts["scale"].float()
    stored = {name: InMemory(part) for name, part in parts.items()}
    found = Sign(group).decode(stored, (200, 300), (slice(2, 190), columns), InMemory(delta)).dense
    assert found is not None
    assert torch.equal(found, expected[2:190, columns])
    assert group == 1 or not (found.signbit() & (found == 0)).any()


@pytest.mark.parametrize("group", [1, 2, 4, 6, 8, 16, 31, 64])
def test_the_noise_of_a_gaussian_delta(group: int) -> None:
    gaussian = torch.randn(100, 64 * group, generator=torch.Generator().manual_seed(0))
    error = (through(Sign(group), gaussian) - gaussian).square().sum() / gaussian.square().sum()
    assert float(error) == pytest.approx(noise(group), rel=0.02)


def test_zeros_take_no_place_from_others() -> None:
    delta = torch.zeros(3, 40)
    delta[:, 5::10] = torch.tensor([[1e-4], [-1e-4], [0.0]])
    torch.testing.assert_close(through(Sign(10), delta), delta, rtol=2**-8, atol=0)


def test_signs_of_the_largest_have_less_noise_than_random_elements(delta: Tensor) -> None:
    """At equal bytes."""
    codecs = Sign(8), Random(density=0.13)
    largest, random = (float((through(codec, delta) - delta).square().sum()) for codec in codecs)
    assert layout_bytes(codecs[0].layout((200, 300))) <= layout_bytes(codecs[1].layout((200, 300)))
    assert largest < random / 4


def test_lrsign_is_closer_than_either(delta: Tensor) -> None:
    error = {
        type(codec).__name__: float((through(codec, delta) - delta).norm() / delta.norm())
        for codec in (Sign(), LRSign(rank=8))
    }
    assert error["LRSign"] < 0.75 * error["Sign"]


def test_what_truncation_takes_from_a_sum(delta: Tensor) -> None:
    """The measure that matters: the length along the delta, which truncation shortens and signs do not."""

    def length(codec: Codec) -> float:
        return float((through(codec, delta) * delta).sum() / delta.square().sum())

    assert length(LowRank(rank=8)) < 0.85
    assert length(LRSign(rank=8)) == pytest.approx(1, abs=0.01)
    assert length(LRSign(rank=8, group=6)) == pytest.approx(1, abs=0.01)
