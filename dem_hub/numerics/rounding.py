"""From a wide sum to the target dtype in one rounding: stochastic (unbiased), or to nearest.

A bf16 base lies on the grid of bf16, so rounding to nearest removes every change smaller than half a step. Rounding
up or down with probability in proportion keeps such changes in the mean (Croci et al., 2022, "Stochastic rounding:
implementation, error analysis and applications", eq. 2.2). On the CPU that is one compiled pass, on an accelerator,
and where numba cannot be loaded, a few operations of torch, with the same bits.
"""

from typing import Any

import numpy
import torch
from torch import Tensor

from dem_hub.numerics.buffers import scratch
from dem_hub.numerics.noise import MARGIN, Noise, random_bits
from dem_hub.numerics.passes import kernels
from dem_hub.numerics.products import Block, Product
from dem_hub.numerics.slices import Index

# Elements that are rounded at a time on an accelerator, to bound its memory: 256 MiB for each int32 temporary. Chosen
# by hand, not measured.
BLOCK = 1 << 26

# Relative error of a sum with a float32 delta, by which it may lie above the largest number of a 16-bit dtype and
# still round to it. It is within `MARGIN`.
DELTA_ERROR = 2.5 * 2.0**-24

# The names of the compiled passes, by the dtypes of the base (or sum) and of the target.
_PASSES = {
    (torch.bfloat16, torch.bfloat16): "merge_bfloat16",
    (torch.float64, torch.bfloat16): "round_to_bfloat16",
    (torch.float64, torch.float16): "round_to_float16",
}


def round_to(total: Tensor, dtype: torch.dtype, seed: int, name: str, index: Index, shape: tuple[int, ...]) -> Tensor:
    """Round a sum stochastically to bfloat16 or float16, and to nearest if the target is wider.

    Args:
        total (`Tensor`): the sum, float32 or float64.
        dtype (`torch.dtype`): the target.
        seed (`int`): the seed of the recipe.
        name (`str`): the tensor's name.
        index (`tuple[slice, ...]`): the part of the tensor that `total` is.
        shape (`tuple[int, ...]`): the shape of the whole tensor.

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
    """Return whether a compiled pass begins with a tensor of the dtype `source`, without a copy of it in float64."""
    return device.type == "cpu" and (source, target) in _PASSES and kernels() is not None


def round_into(result: Tensor, total: Tensor, product: Product | None, noise: Noise | None) -> bool:
    """Round `total`, or total + product, into a contiguous tensor.

    Args:
        result (`Tensor`): takes the rounded sum, (R, C).
        total (`Tensor`): the sum without the product. It is overwritten, unless a compiled pass rounds it.
        product ([`Product`], *optional*): what is added, (R, C).
        noise ([`Noise`], *optional*): the random bits of the stochastic rounding; without them, the sum is rounded to
            nearest.

    Returns:
        `bool`: whether all of the sum is finite and in the range of the target.
    """
    if total.numel() == 0:
        return True
    largest = torch.finfo(result.dtype).max
    if result.dtype.itemsize == 2:
        largest *= 1 + DELTA_ERROR
    if noise is not None and is_compiled(torch.float64, result.dtype, total.device):
        if product is None:
            return round_compiled(result, total, None, noise) <= largest
        # Where the bound on the product's error is out of range, the sum itself perhaps is not.
        if product.is_bounded and round_compiled(result, total, product, noise) <= largest:
            return True
        return round_compiled(result, product.added_to(total.double()), None, noise) <= largest
    if product is not None:
        total = product.added_to(total)
    low, high = torch.aminmax(total)
    if noise is not None and result.dtype in (torch.bfloat16, torch.float16):
        round_by_torch(result, total, noise)
    else:
        result.copy_(total)
    return bool(max(-low, high) <= largest)  # false for NaN


def round_compiled(result: Tensor, total: Tensor, product: Product | None, noise: Noise) -> float:
    """Round stochastically on the CPU, in compiled passes. The product has a bound on its error.

    Returns:
        `float`: the largest magnitude in the sum, or NaN. With a product it is an upper bound of the magnitude, by the
            bound on the error.
    """
    count = len(noise.rows)
    width = noise.columns.stop - noise.columns.start
    if not is_compiled(total.dtype, result.dtype, total.device):
        total = scratch("wide", tuple(total.shape), torch.float64, total.device).copy_(total)
    compiled = getattr(kernels(), _PASSES[total.dtype, result.dtype])
    low, high = (numpy.uint32(word & 0xFFFFFFFF) for word in noise.state)
    sums, rounded = total.reshape(count, width).contiguous(), result.view(count, width)
    blocks = product.blocks() if product is not None else [Block.of_nothing(count, width)]
    largest = []
    for block in blocks:
        base = _to_numpy(sums[block.rows])
        parts = block.values, block.left, block.columns, block.row_norms, block.column_errors
        change = tuple(_to_numpy(part) for part in parts)
        bits = (_to_numpy(noise.rows[block.rows]), low, high, noise.columns.start)
        largest.append(compiled(base, change, bits, _to_numpy(rounded[block.rows])))
    return float(numpy.max(largest))  # NaN if one of them is


def _to_numpy(tensor: Tensor) -> Any:
    """Return the same memory as an array.

    The compiled loops take 16-bit floats, and the numbers of rows, as unsigned bits.
    """
    if tensor.dtype in (torch.bfloat16, torch.float16):
        return tensor.view(torch.int16).numpy().view(numpy.uint16)
    if tensor.dtype == torch.int32:
        return tensor.numpy().view(numpy.uint32)
    return tensor.numpy()


def round_by_torch(result: Tensor, total: Tensor, noise: Noise) -> None:
    """Round finite sums stochastically on any device, by operations of torch."""
    rows = len(noise.rows)
    start = noise.columns.start
    width = noise.columns.stop - start
    source = total.reshape(rows, width)
    target = result.view(rows, width)
    keys = noise.keys
    round_bits = _to_bfloat16 if result.dtype == torch.bfloat16 else _to_float16
    column_step = min(width, BLOCK)
    row_step = BLOCK // column_step
    for row in range(0, rows, row_step):
        for column in range(0, width, column_step):
            part = (slice(row, row + row_step), slice(column, column + column_step))
            narrow = source[part].float()
            bits = random_bits(keys[part[0]], start + column, start + column + narrow.shape[1])
            target[part] = round_bits(narrow, bits)


def _to_bfloat16(total: Tensor, bits: Tensor) -> Tensor:
    """Add 16 random bits below the last bit of bfloat16, then cut them off: the carry is the rounding.

    The bits are overwritten.
    """
    return bits.clamp_(MARGIN, 0xFFFF - MARGIN).add_(total.view(torch.int32)).bitwise_and_(-0x10000).view(torch.float32)


def _to_float16(total: Tensor, bits: Tensor) -> Tensor:
    """Add 13 random bits below the last bit of float16, then cut them off. The bits are overwritten.

    Below the smallest normal number of float16, 2^-14, all its steps are 2^-24; there the sum with the bits is
    rounded down to a multiple of that.
    """
    bits.bitwise_right_shift_(3).clamp_(MARGIN, 0x1FFF - MARGIN)
    steps = total.abs().mul_(2.0**24)
    small = steps < 2.0**10
    steps.add_(bits.float() * 2.0**-13).floor_().mul_(2.0**-24).copysign_(total)
    return torch.where(small, steps, bits.add_(total.view(torch.int32)).bitwise_and_(-0x2000).view(torch.float32))
