"""From a wide sum to the target dtype, in one rounding: stochastic (unbiased) or to nearest.

A bf16 base lies on bf16's grid, so rounding to nearest removes every change smaller than half a step; rounding up or down with
probability in proportion keeps them in the mean (Croci et al., 2022, "Stochastic rounding: implementation, error analysis and
applications", eq. 2.2). The random bits are a hash of seed, tensor name, row and column, not the draw of a sequential generator:
the same on every device, for the whole tensor or any slice of it, in any order. One 32-bit hash serves two elements.
"""

import hashlib

import torch
from torch import Tensor

from dem_hub.index import Index, rows_and_columns

BLOCK = 1 << 18  # elements hashed at a time on the CPU: what stays in its cache
# The lowest and highest random values are left out, so that a float32 sum which is off by two units in the last place still never
# rounds past the neighbours of the exact result, and a sum that is a target value but for such an error stays that value.
MARGIN = 2


def round_to(total: Tensor, dtype: torch.dtype, seed: int, name: str, index: Index, shape: tuple[int, ...]) -> Tensor:
    """Round stochastically to bfloat16 or float16; to nearest where the target is as wide as the sum.

    Args:
        total (`Tensor`): the float32 or float64 sum; overwritten.
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
    >>> from dem_hub.index import full_index
    >>> from dem_hub.rounding import round_to
    >>> sums = torch.full((100, 1000), 1 + 2**-9)  # a quarter of a bfloat16 step above 1
    >>> rounded = round_to(sums, torch.bfloat16, 0, "weight", full_index((100, 1000)), (100, 1000))
    >>> round((rounded > 1).float().mean().item(), 2)
    0.25

    ```
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return total.to(dtype)
    rows, columns = rows_and_columns(index, shape)
    flat = total.float().reshape(len(rows), columns.stop - columns.start)
    result = torch.empty(flat.shape, dtype=dtype, device=total.device)
    keys = row_keys(seed, name, rows.to(total.device))
    width, height = flat.shape[1], flat.shape[0]
    # a GPU takes all of it at once, as far as its memory is not strained
    block = BLOCK if total.device.type == "cpu" else 1 << 26
    column_step = min(max(width, 1), block)
    row_step = max(1, block // max(column_step, 1))
    round_block = _to_bfloat16 if dtype == torch.bfloat16 else _to_float16
    for row in range(0, height, row_step):
        for column in range(0, width, column_step):
            stop = min(column + column_step, width)
            bits = random_bits(keys[row : row + row_step], columns.start + column, columns.start + stop)
            part = flat[row : row + row_step, column:stop]
            result[row : row + row_step, column:stop] = round_block(part, bits)
    return result.reshape(total.shape)


def random_bits(row_keys: Tensor, start: int, stop: int) -> Tensor:
    """16 random bits for each element of some rows and a range of columns.

    Args:
        row_keys (`Tensor`): (rows,) int32, from the seed, the name and the row's number.
        start, stop (`int`): the columns.

    Returns:
        `Tensor`: (rows, stop - start) int32, 0 to 65535.
    """
    first = start >> 1
    pairs = torch.arange(first, (stop + 1) >> 1, dtype=torch.int32, device=row_keys.device)
    words = _mix(row_keys[:, None] + (pairs * -1640531527)[None, :])  # 2^32 / golden ratio: neighbouring columns far apart
    halves = words.reshape(-1).view(torch.int16).reshape(len(row_keys), 2 * len(pairs))
    return halves[:, start - 2 * first : stop - 2 * first].to(torch.int32).bitwise_and_(0xFFFF)


def row_keys(seed: int, name: str, rows: Tensor) -> Tensor:
    """A 32-bit hash of seed, name and row number for each row: (rows,) int32."""
    state = hashlib.sha256(f"{seed} {name}".encode()).digest()
    low, high = (int.from_bytes(state[i : i + 4], "little", signed=True) for i in (0, 4))
    return _mix(_mix(rows.to(torch.int32) + low).bitwise_xor_(high))


def _mix(word: Tensor) -> Tensor:
    """The 32-bit integer hash `lowbias32` (C. Wellons, 2018), in place, in int32 arithmetic that wraps."""
    word ^= (word >> 16).bitwise_and_(0xFFFF)
    word *= 0x7FEB352D
    word ^= (word >> 15).bitwise_and_(0x1FFFF)
    word *= -2073254261  # 0x846CA68B
    word ^= (word >> 16).bitwise_and_(0xFFFF)
    return word


def _to_bfloat16(total: Tensor, bits: Tensor) -> Tensor:
    """Add 16 random bits below bfloat16's last bit, then cut: the carry is the rounding."""
    word = bits.clamp_(MARGIN, 0xFFFF - MARGIN).add_(total.contiguous().view(torch.int32)).bitwise_and_(-0x10000)
    return word.view(torch.float32).to(torch.bfloat16)


def _to_float16(total: Tensor, bits: Tensor) -> Tensor:
    """The same with 13 bits; below float16's smallest normal number its steps are all 2^-24."""
    bits.bitwise_right_shift_(3).clamp_(MARGIN, 0x1FFF - MARGIN)
    small = total.abs().mul_(2.0**24).add_(bits.float().mul_(2.0**-13)).floor_().mul_(2.0**-24).copysign_(total)
    word = bits.add_(total.contiguous().view(torch.int32)).bitwise_and_(-0x2000)
    return torch.where(total.abs() < 2.0**-14, small, word.view(torch.float32)).to(torch.float16)
