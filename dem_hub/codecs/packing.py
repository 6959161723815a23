"""Numbers of 1, 4 or 8 bits: packed into bytes along the last dimension, and unpacked from any range of columns.

    value = code * scale                  4 and 8 bits: a scale for each group of 64 columns
    scale = sum(v^2) / sum(v * code)      so that <decoded, v> = <v, v>: nothing shrinks

Most quantizers take the least-squares scale. It has the smaller error and makes the vector too short, which shows in
a weighted sum of several. The first number of a byte is in its low bits. Scales are bfloat16, because the range of
float16 is too small for them.
"""

import torch
from torch import Tensor
from torch.nn import functional

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.layout import Part
from dem_hub.numerics.slices import Index

# Columns that share a scale: the group of QLoRA and of `nf4`. A multiple of 8, so that a group begins at a whole byte.
GROUP = 64


def packed_size(columns: int, bits: int) -> int:
    """Return the bytes that so many numbers take."""
    return -(-columns * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Pack whole numbers from 0 to 2^bits - 1 into bytes.

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
    """Return the numbers in (..., B) bytes: (..., B * 8 / bits) uint8."""
    if bits == 8:
        return packed
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=packed.device)
    numbers: Tensor = (packed.unsqueeze(-1) >> shifts) & (2**bits - 1)
    return numbers.flatten(-2)


def quantize(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return codes of 4 or 8 bits, packed, and unbiased scales.

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
    """Return sum(v^2) / sum(v * code) along the last dimension, which stays as one of size 1; 0 where all codes are
    0.
    """
    products = (values * codes).sum(dim=-1, keepdim=True)
    return torch.where(products > 0, values.square().sum(dim=-1, keepdim=True) / products, 0)


def dequantize(codes: LazyTensor, scales: LazyTensor, lead: Index, columns: slice, bits: int) -> Tensor:
    """Return a part of what [`quantize`] made, in float32.

    Args:
        codes, scales (`LazyTensor`): packed codes (..., B) and their scales (..., G), unread.
        lead (`tuple[slice, ...]`): the rows, one slice for each dimension but the last.
        columns (`slice`): the columns.
        bits (`int`): 4 or 8.
    """
    first = columns.start // GROUP * GROUP  # where the first group begins
    width = columns.stop - first
    packed = codes[(*lead, slice(first * bits // 8, packed_size(columns.stop, bits)))]
    values = unpack(packed, bits)[..., :width].float() - 2 ** (bits - 1)
    group_scales = scales[(*lead, slice(first // GROUP, -(-columns.stop // GROUP)))].float()
    scale = group_scales.repeat_interleave(GROUP, dim=-1)[..., :width]
    result: Tensor = values * scale
    return result[..., columns.start - first :]


def quantized_parts(lead: tuple[int | str, ...], columns: int, bits: int) -> tuple[Part, Part]:
    """Return the layout of what [`quantize`] makes. A size in `lead` that the data decides is a name."""
    codes = Part(("U8",), (*lead, packed_size(columns, bits)))
    scales = Part(("BF16",), (*lead, -(-columns // GROUP)))
    return codes, scales
