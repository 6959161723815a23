"""Bits in bytes: low ones first, and scales under which nothing shrinks; against a reference in numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dem_hub.checkpoints.lazy import InMemory
from dem_hub.codecs.packing import GROUP, dequantize, look_up, pack, packed_size, quantize, unpack


@pytest.mark.parametrize("bits", [1, 4, 8])
@settings(max_examples=100, deadline=None, derandomize=True)
@given(data=st.data())
def test_packing(bits: int, data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=50))
    packed = pack(torch.tensor([numbers, numbers]), bits)
    as_one = sum(number << (bits * place) for place, number in enumerate(numbers))
    expected = list(as_one.to_bytes(packed_size(len(numbers), bits), "little"))
    assert packed.tolist() == [expected, expected]
    assert unpack(packed, bits)[:, : len(numbers)].tolist() == [numbers, numbers]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("wide", [1, 2, 5])
@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 1), (4,), (0, 5), (5, 0)], ids=str)
def test_values_of_numbers(bits: int, wide: int, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    table = torch.randn(2**bits, wide, generator=generator)
    assert torch.equal(look_up(packed, bits, table), table[unpack(packed, bits).long()].flatten(-2))


def reference(values: Tensor, bits: int) -> np.ndarray:
    """Decoded values, in float64, a group at a time."""
    largest = 2 ** (bits - 1) - 1
    decoded = np.zeros(values.shape)
    for row, line in enumerate(values.double().numpy()):
        for start in range(0, len(line), GROUP):
            group = line[start : start + GROUP]
            peak = np.abs(group).max()
            if peak > 0:
                codes = np.round(group / peak * largest)
                scale = (group**2).sum() / (group * codes).sum()
                decoded[row, start : start + GROUP] = codes * float(torch.tensor(scale).bfloat16())
    return decoded


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("columns", [1, 63, 64, 65, 200])
def test_quantizing(bits: int, columns: int) -> None:
    values = torch.randn(5, columns, generator=torch.Generator().manual_seed(columns)) * 1e-3
    codes, scales = quantize(values, bits)
    assert codes.shape == (5, packed_size(columns, bits))
    assert scales.shape == (5, -(-columns // GROUP))
    decoded = dequantize(InMemory(codes), InMemory(scales), (slice(0, 5),), slice(0, columns), bits)
    np.testing.assert_allclose(decoded.numpy(), reference(values, bits), rtol=2**-8, atol=1e-12)  # a step of bfloat16


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(
    "columns", [slice(0, 200), slice(3, 70), slice(64, 128), slice(130, 131), slice(70, 70)], ids=str
)
def test_slices_are_codes_times_scales(bits: int, columns: slice) -> None:
    codes, scales = quantize(torch.randn(3, 200, generator=torch.Generator().manual_seed(0)), bits)
    whole = (unpack(codes, bits)[:, :200].float() - 2 ** (bits - 1)) * scales.float().repeat_interleave(GROUP, 1)[
        :, :200
    ]
    found = dequantize(InMemory(codes), InMemory(scales), (slice(0, 3),), columns, bits)
    assert torch.equal(found, whole[:, columns])


def test_nothing_is_nothing() -> None:
    codes, scales = quantize(torch.zeros(2, 70), 4)
    assert not dequantize(InMemory(codes), InMemory(scales), (slice(0, 2),), slice(0, 70), 4).any()
