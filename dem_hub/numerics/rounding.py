"""From a wide sum to the target dtype, in one rounding: stochastic (unbiased) or to nearest.

A bf16 base lies on bf16's grid, so rounding to nearest removes every change smaller than half a step; rounding up or down with
probability in proportion keeps them in the mean (Croci et al., 2022, "Stochastic rounding: implementation, error analysis and
applications", eq. 2.2). On the CPU that is one compiled pass, on an accelerator a few operations of torch, with the same bits.
"""

from typing import Any

import numpy
import torch
from torch import Tensor

from dem_hub.numerics.buffers import scratch
from dem_hub.numerics.kernels import MARGIN, merge_bfloat16, round_to_bfloat16, round_to_float16
from dem_hub.numerics.noise import Noise, random_bits
from dem_hub.numerics.slices import Index

BLOCK = 1 << 26  # elements rounded at a time on an accelerator, for the sake of its memory
DELTA_ERROR = 2.5 * 2.0**-24  # relative; what a float32 delta lacks of the largest number, within `MARGIN` of it
_COMPILED = {
    (torch.bfloat16, torch.bfloat16): merge_bfloat16,
    (torch.float64, torch.bfloat16): round_to_bfloat16,
    (torch.float64, torch.float16): round_to_float16,
}


def round_to(total: Tensor, dtype: torch.dtype, seed: int, name: str, index: Index, shape: tuple[int, ...]) -> Tensor:
    """Round stochastically to bfloat16 or float16; to nearest where the target is as wide as the sum.

    Args:
        total (`Tensor`): the float32 or float64 sum.
        dtype (`torch.dtype`): the target.
        seed (`int`): the recipe's.
        name (`str`): the tensor's name.
        index (`tuple[slice, ...]`): which part of the tensor `total` is.
        shape (`tuple[int, ...]`): the whole tensor's shape.

    Returns:
        `Tensor`: of the target dtype, each element one of the two target values around its sum.

    Example:

    ```python
    >>> import torch
    >>> from dem_hub.numerics.slices import full_index
    >>> from dem_hub.numerics.rounding import round_to
    >>> sums = torch.full((100, 1000), 1 + 2**-9)  # a quarter of a bfloat16 step above 1
    >>> rounded = round_to(sums, torch.bfloat16, 0, "weight", full_index((100, 1000)), (100, 1000))
    >>> round((rounded > 1).float().mean().item(), 2)
    0.25

    ```
    """
    result = torch.empty(total.shape, dtype=dtype, device=total.device)
    round_into(result, total, None, Noise.of(seed, name, index, shape, total.device))
    return result


def is_compiled(source: torch.dtype, target: torch.dtype, device: torch.device) -> bool:
    """Whether a sum that begins with a tensor of this dtype is rounded to the target straight from there, without a copy in float64."""
    return device.type == "cpu" and (source, target) in _COMPILED


def round_into(result: Tensor, total: Tensor, factors: tuple[Tensor, Tensor] | None, noise: Noise | None) -> bool:
    """Round `total`, or total + left @ right, into a contiguous tensor, as [`round_to`] does; to nearest where there is no noise.

    The factors are (R, K) and (K, C). Where nothing is compiled, `total` is overwritten.

    Returns:
        `bool`: whether all of the sum is finite and in the range of the target.
    """
    if total.numel() == 0:
        return True
    largest = torch.finfo(result.dtype).max * (1 + (DELTA_ERROR if result.dtype.itemsize == 2 else 0))
    if noise is not None and is_compiled(torch.float64, result.dtype, total.device):
        if (
            factors is not None
            and factors[0].dtype == torch.float32
            and round_compiled(result, total, factors, noise) <= largest
        ):
            return True
        if (
            factors is not None
        ):  # not in float32, or out of the range by the bound on the product's error alone, perhaps
            total = total.double().addmm(*(factor.double() for factor in factors))
        return round_compiled(result, total, None, noise) <= largest
    if factors is not None:
        total.addmm_(*(factor.to(total.dtype) for factor in factors))
    low, high = torch.aminmax(total)
    if noise is not None and result.dtype in (torch.bfloat16, torch.float16):
        round_by_torch(result, total, noise)
    else:
        result.copy_(total)
    return bool(max(-low, high) <= largest)  # not where it is NaN


def round_compiled(result: Tensor, total: Tensor, factors: tuple[Tensor, Tensor] | None, noise: Noise) -> float:
    """Stochastically on the CPU; returns the largest magnitude in the sum, or NaN, or with factors what it may be at the most.

    The left factor is float32.
    """
    shape = len(noise.rows), noise.columns.stop - noise.columns.start
    if not is_compiled(total.dtype, result.dtype, total.device):
        total = scratch("wide", tuple(total.shape), torch.float64, total.device).copy_(total)
    compiled = _COMPILED[total.dtype, result.dtype]
    none = torch.empty(0, device="cpu")
    left, right = factors if factors is not None else (none.view(shape[0], 0), none.view(0, shape[1]))
    arrays = [_numpy(tensor.contiguous()) for tensor in (total.reshape(shape), left, right.double(), noise.rows)]
    low, high = (numpy.uint32(word & 0xFFFFFFFF) for word in noise.state)
    return float(compiled(*arrays, low, high, noise.columns.start, _numpy(result.view(shape))))


def _numpy(tensor: Tensor) -> Any:
    """The same memory; of what numba has no type for, bfloat16, float16 and the numbers of rows, the bits without a sign."""
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor.view(torch.int16).numpy().view(numpy.uint16)
    return tensor.numpy().view(numpy.uint32) if tensor.dtype == torch.int32 else tensor.numpy()


def round_by_torch(result: Tensor, total: Tensor, noise: Noise) -> None:
    """Stochastically on any device; finite sums only."""
    rows, start, width = len(noise.rows), noise.columns.start, noise.columns.stop - noise.columns.start
    source, target, keys = total.reshape(rows, width), result.view(rows, width), noise.keys
    column_step = min(width, BLOCK)
    row_step = BLOCK // column_step
    for row in range(0, rows, row_step):
        for column in range(0, width, column_step):
            part = (slice(row, row + row_step), slice(column, column + column_step))
            narrow = source[part].float()
            bits = random_bits(keys[part[0]], start + column, start + column + narrow.shape[1])
            target[part] = _to_bfloat16(narrow, bits) if result.dtype == torch.bfloat16 else _to_float16(narrow, bits)


def _to_bfloat16(total: Tensor, bits: Tensor) -> Tensor:
    """Add 16 random bits below bfloat16's last bit, then cut: the carry is the rounding. Overwrites the bits."""
    return bits.clamp_(MARGIN, 0xFFFF - MARGIN).add_(total.view(torch.int32)).bitwise_and_(-0x10000).view(torch.float32)


def _to_float16(total: Tensor, bits: Tensor) -> Tensor:
    """The same with 13 bits; below float16's smallest normal number its steps are all 2^-24. Overwrites the bits."""
    bits.bitwise_right_shift_(3).clamp_(MARGIN, 0x1FFF - MARGIN)
    steps = total.abs().mul_(2.0**24)
    small = steps < 2.0**10
    steps.add_(bits * 2.0**-13).floor_().mul_(2.0**-24).copysign_(total)
    return torch.where(small, steps, bits.add_(total.view(torch.int32)).bitwise_and_(-0x2000).view(torch.float32))
