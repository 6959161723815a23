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
from dem_hub.numerics.buffers import decoded_memory, scratch
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


def look_up(packed: Tensor, bits: int, table: Tensor) -> Tensor:
    """Return the values that the numbers in (..., B) bytes stand for, N for each number: (..., B * 8 / bits * N).

    The numbers of a byte are looked up together. On a CPU that takes 1.7 ns for a sign, and taking the bits apart 7.6.

    Args:
        packed (`Tensor`): What [`pack`] returned.
        bits (`int`): 1, 2, 4 or 8.
        table (`Tensor`): (2^bits, N) float32 on the same device, the values of each number.

    Example:

    ```python
    >>> import torch
    >>> from dem_hub.codecs.packing import look_up, pack
    >>> look_up(pack(torch.tensor([3, 0]), 4), 4, torch.linspace(0.0, 1.5, 16)[:, None])
    tensor([0.3000, 0.0000])

    ```
    """
    every_byte = torch.arange(256, dtype=torch.uint8, device=packed.device)
    of_bytes = table[unpack(every_byte[:, None], bits).int()].flatten(1)
    shape = (*packed.shape[:-1], packed.shape[-1] * of_bytes.shape[1])
    if of_bytes.shape[1] == 2:
        # torch gathers single numbers faster than pairs.
        of_bytes = of_bytes.view(torch.int64)
    of_bytes = of_bytes.squeeze(1)
    # A merge decodes block after block. New memory for each took the system as long as the look-up.
    gathered = decoded_memory((packed.numel(), *of_bytes.shape[1:]), of_bytes.dtype, packed.device)
    places = scratch("bytes to look up", (packed.numel(),), torch.int32, packed.device).copy_(packed.reshape(-1))
    torch.index_select(of_bytes, 0, places, out=gathered)
    return gathered.view(torch.float32).view(shape)


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
    numbers = torch.arange(2**bits, dtype=torch.float32, device=packed.device) - 2 ** (bits - 1)
    values = look_up(packed, bits, numbers[:, None])[..., :width]
    group_scales = scales[(*lead, slice(first // GROUP, -(-columns.stop // GROUP)))].float()
    groups = width // GROUP
    values[..., : groups * GROUP].unflatten(-1, (groups, GROUP)).mul_(group_scales[..., :groups, None])
    values[..., groups * GROUP :].mul_(group_scales[..., groups:])  # the last group, if it is not whole
    return values[..., columns.start - first :]


def quantized_parts(lead: tuple[int | str, ...], columns: int, bits: int) -> tuple[Part, Part]:
    """Return the layout of what [`quantize`] makes. A size in `lead` that the data decides is a name."""
    codes = Part(("U8",), (*lead, packed_size(columns, bits)))
    scales = Part(("BF16",), (*lead, -(-columns // GROUP)))
    return codes, scales
