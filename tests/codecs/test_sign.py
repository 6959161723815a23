"""`sign` and `lrsign` against references in numpy, and what they promise of a sum."""

import numpy as np
import pytest
import torch
from torch import Tensor

from dem_hub.checkpoint import InMemory
from dem_hub.codecs import Codec, to_dense
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.lrsign import LRSign
from dem_hub.codecs.sign import Sign
from dem_hub.index import full_index


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


def test_kept_signs_stand_for_their_group(delta: Tensor) -> None:
    whole, some = through(Sign(), delta), through(Sign(density=0.25, seed=3), delta)
    kept = some != 0
    assert float(kept.float().mean()) == pytest.approx(0.25, abs=0.001)
    torch.testing.assert_close(some[kept], 4 * whole[kept])


def test_lrsign_is_closer_than_either(delta: Tensor) -> None:
    error = {type(codec).__name__: float((through(codec, delta) - delta).norm() / delta.norm()) for codec in (Sign(), LRSign(rank=8))}
    assert error["LRSign"] < 0.75 * error["Sign"]


def test_what_truncation_takes_from_a_sum(delta: Tensor) -> None:
    """The measure that matters: the length along the delta, which truncation shortens and signs do not."""

    def length(codec: Codec) -> float:
        return float((through(codec, delta) * delta).sum() / delta.square().sum())

    assert length(LowRank(rank=8)) < 0.85
    assert length(LRSign(rank=8)) == pytest.approx(1, abs=0.01)
    assert length(LRSign(rank=8, density=0.3)) == pytest.approx(1, abs=0.05)
