"""Numbers of 1, 4 or 8 bits: packed into bytes along the last dimension, and unpacked from any range of columns.

    value = code * scale                  4 and 8 bits: a scale for each group of 64 columns
    scale = sum(v^2) / sum(v * code)      so that <decoded, v> = <v, v>: nothing shrinks

Rounding to codes and taking the least-squares scale, as quantisers usually do, gives the smaller error and a vector that is too
short, which a weighted sum of several feels. Low bits come first in a byte. Scales are bfloat16: float16 has no room for them.
"""

import torch
from torch import Tensor
from torch.nn import functional

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.layout import Part
from dem_hub.numerics.slices import Index

GROUP = 64  # columns that share a scale; a multiple of 8


def packed_size(columns: int, bits: int) -> int:
    """Bytes of so many numbers."""
    return -(-columns * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack whole numbers from 0 to 2^bits - 1.

    Args:
        codes (`Tensor`): (..., C), any dtype.
        bits (`int`): 1, 4 or 8.

    Returns:
        `Tensor`: (..., ceil(C * bits / 8)) uint8.

    Example:

    ```python
    >>> import torch
    >>> from dem_hub.codecs.packing import pack, unpack
    >>> pack(torch.tensor([1, 0, 1, 1]), 1), unpack(pack(torch.tensor([3, 9, 4]), 4), 4)[:3]
    (tensor([13], dtype=torch.uint8), tensor([3, 9, 4], dtype=torch.uint8))

    ```
    """
    per_byte = 8 // bits
    columns = codes.shape[-1]
    padded = functional.pad(codes.to(torch.uint8), (0, packed_size(columns, bits) * per_byte - columns))
    packed = padded[..., ::per_byte].clone()
    for place in range(1, per_byte):
        packed |= padded[..., place::per_byte] << (place * bits)
    return packed


def unpack(packed: Tensor, bits: int) -> Tensor:
    """The numbers in (..., B) bytes: (..., B * 8 / bits) uint8."""
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    numbers: Tensor = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return numbers.flatten(-2)


def quantize(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and unbiased scales of 4 or 8 bits.

    Args:
        values (`Tensor`): (..., C) float32.
        bits (`int`): 4 (codes -7 to 7) or 8 (-127 to 127).

    Returns:
        `tuple[Tensor, Tensor]`: (..., ceil(C * bits / 8)) uint8, and (..., ceil(C / GROUP)) bfloat16.
    """
    largest = 2 ** (bits - 1) - 1
    columns = values.shape[-1]
    groups = -(-columns // GROUP)
    grouped = functional.pad(values, (0, groups * GROUP - columns)).reshape(*values.shape[:-1], groups, GROUP)
    peak = grouped.abs().amax(dim=-1, keepdim=True)
    units = grouped / torch.where(peak > 0, peak, 1)  # -1 to 1, so that no square underflows
    codes = (units * largest).round()
    scales = (peak * unbiased_scale(units, codes)).squeeze(-1).bfloat16()
    return pack(codes.flatten(-2)[..., :columns] + (largest + 1), bits), scales


def unbiased_scale(values: Tensor, codes: Tensor) -> Tensor:
    """sum(v^2) / sum(v * code) along the last dimension, kept; 0 where there is nothing."""
    products = (values * codes).sum(dim=-1, keepdim=True)
    return torch.where(products > 0, values.square().sum(dim=-1, keepdim=True) / products, 0)


def dequantize(codes: LazyTensor, scales: LazyTensor, lead: Index, columns: slice, bits: int) -> Tensor:
    """A part of what [`quantize`] made: rows `lead` (a slice for each dimension but the last) and a range of columns, float32."""
    first = columns.start // GROUP * GROUP
    bytes_ = slice(first * bits // 8, packed_size(columns.stop, bits))
    groups = slice(first // GROUP, -(-columns.stop // GROUP))
    values = unpack(codes[(*lead, bytes_)], bits)[..., : columns.stop - first].float() - 2 ** (bits - 1)
    scale = scales[(*lead, groups)].float().repeat_interleave(GROUP, dim=-1)[..., : columns.stop - first]
    result: Tensor = values * scale
    return result[..., columns.start - first :]


def quantized_parts(lead: tuple[int, ...], columns: int, bits: int) -> tuple[Part, Part]:
    """The layout of what [`quantize`] makes."""
    return Part(("U8",), (*lead, packed_size(columns, bits))), Part(("BF16",), (*lead, -(-columns // GROUP)))
