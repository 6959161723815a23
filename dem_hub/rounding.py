"""From a wide sum to the target dtype, in one rounding: stochastic (unbiased) or to nearest.

A bf16 base lies on bf16's grid, so rounding to nearest removes every change smaller than half a step; rounding up or down with
probability in proportion keeps them in the mean (Croci et al., 2022, "Stochastic rounding: implementation, error analysis and
applications", eq. 2.2). The random bits are a hash of seed, tensor name, row and column, not the draw of a sequential generator:
the same on every device, for the whole tensor or any slice of it, in any order. One 32-bit hash serves two elements.
"""

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.index import Index, rows_and_columns
from dem_hub.scratch import scratch

BLOCK = 1 << 18  # elements hashed at a time on the CPU: what stays in its cache
# The lowest and highest random values are left out, so that a float32 sum which is off by two units in the last place still never
# rounds past the neighbours of the exact result, and a sum that is a target value but for such an error stays that value.
MARGIN = 2


@dataclass(frozen=True)
class Noise:
    """The random bits of a part of a tensor, not drawn yet: a key for each row (dimensions but the last are flattened), and its columns."""

    keys: Tensor  # (rows,) int32
    columns: slice

    @classmethod
    def of(cls, seed: int, name: str, index: Index, shape: tuple[int, ...], device: torch.device) -> "Noise":
        """Of the part `index` of the tensor `name`, which has this shape as a whole."""
        rows, columns = rows_and_columns(index, shape)
        return cls(row_keys(seed, name, rows.to(device)), columns)

    def part(self, index: Index, shape: tuple[int, ...]) -> "Noise":
        """Of some of the first dimension of a part of this shape."""
        if not index:
            return self
        start, stop = index[0].start, index[0].stop
        if len(shape) == 1:
            return Noise(self.keys, slice(self.columns.start + start, self.columns.start + stop))
        rows = len(self.keys) // shape[0]
        return Noise(self.keys[start * rows : stop * rows], self.columns)


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
    >>> from dem_hub.index import full_index
    >>> from dem_hub.rounding import round_to
    >>> sums = torch.full((100, 1000), 1 + 2**-9)  # a quarter of a bfloat16 step above 1
    >>> rounded = round_to(sums, torch.bfloat16, 0, "weight", full_index((100, 1000)), (100, 1000))
    >>> round((rounded > 1).float().mean().item(), 2)
    0.25

    ```
    """
    result = torch.empty(total.shape, dtype=dtype, device=total.device)
    round_into(result, total, Noise.of(seed, name, index, shape, total.device))
    return result


def round_into(result: Tensor, total: Tensor, noise: Noise) -> None:
    """Round a sum into a contiguous tensor of its shape, as [`round_to`] does."""
    if result.dtype not in (torch.bfloat16, torch.float16):
        result.copy_(total)
        return
    height, width = len(noise.keys), noise.columns.stop - noise.columns.start
    source, target = total.reshape(height, width), result.view(height, width)
    # a GPU takes all of it at once, as far as its memory is not strained
    block = BLOCK if total.device.type == "cpu" else 1 << 26
    column_step = min(max(width, 1), block)
    row_step = max(1, block // max(column_step, 1))
    round_block = _to_bfloat16 if result.dtype == torch.bfloat16 else _to_float16
    for row in range(0, height, row_step):
        for column in range(0, width, column_step):
            stop = min(column + column_step, width)
            part = source[row : row + row_step, column:stop]
            narrow = scratch("narrow", tuple(part.shape), torch.float32, part.device).copy_(part)
            bits = random_bits(noise.keys[row : row + row_step], noise.columns.start + column, noise.columns.start + stop)
            round_block(target[row : row + row_step, column:stop], narrow, bits)


def random_bits(row_keys: Tensor, start: int, stop: int) -> Tensor:
    """16 random bits for each element of some rows and a range of columns.

    Args:
        row_keys (`Tensor`): (rows,) int32, from the seed, the name and the row's number.
        start, stop (`int`): the columns.

    Returns:
        `Tensor`: (rows, stop - start) int32, 0 to 65535; on the CPU valid until this thread's next call.
    """
    first, device = start >> 1, row_keys.device
    pairs = torch.arange(first, (stop + 1) >> 1, dtype=torch.int32, device=device)
    words = scratch("words", (len(row_keys), len(pairs)), torch.int32, device)
    torch.add(row_keys[:, None], (pairs * -1640531527)[None, :], out=words)  # 2^32 / golden ratio: neighbouring columns far apart
    halves = _mix(words).view(-1).view(torch.int16).view(len(row_keys), 2 * len(pairs))[:, start - 2 * first : stop - 2 * first]
    return scratch("bits", tuple(halves.shape), torch.int32, device).copy_(halves).bitwise_and_(0xFFFF)


def row_keys(seed: int, name: str, rows: Tensor) -> Tensor:
    """A 32-bit hash of seed, name and row number for each row: (rows,) int32."""
    state = hashlib.sha256(f"{seed} {name}".encode()).digest()
    low, high = (int.from_bytes(state[i : i + 4], "little", signed=True) for i in (0, 4))
    return _mix(_mix(rows.to(torch.int32) + low).bitwise_xor_(high))


def _mix(word: Tensor) -> Tensor:
    """The 32-bit integer hash `lowbias32` (C. Wellons, 2018), in place, in int32 arithmetic that wraps."""
    word = _fold(word, 16, 0xFFFF).mul_(0x7FEB352D)
    word = _fold(word, 15, 0x1FFFF).mul_(-2073254261)  # 0x846CA68B
    return _fold(word, 16, 0xFFFF)


def _fold(word: Tensor, shift: int, mask: int) -> Tensor:
    """word ^= word >> shift, in place; the mask takes off the copies of the sign."""
    high = scratch("high", tuple(word.shape), torch.int32, word.device)
    return word.bitwise_xor_(torch.bitwise_right_shift(word, shift, out=high).bitwise_and_(mask))


def _to_bfloat16(result: Tensor, total: Tensor, bits: Tensor) -> None:
    """Add 16 random bits below bfloat16's last bit, then cut: the carry is the rounding. Overwrites the bits."""
    word = bits.clamp_(MARGIN, 0xFFFF - MARGIN).add_(total.view(torch.int32)).bitwise_and_(-0x10000)
    result.copy_(word.view(torch.float32))


def _to_float16(result: Tensor, total: Tensor, bits: Tensor) -> None:
    """The same with 13 bits; below float16's smallest normal number its steps are all 2^-24. Overwrites the bits, and the sum."""
    bits.bitwise_right_shift_(3).clamp_(MARGIN, 0x1FFF - MARGIN)
    small = torch.abs(total, out=scratch("small", tuple(total.shape), torch.float32, total.device))
    subnormal = small < 2.0**-14
    share = scratch("share", tuple(total.shape), torch.float32, total.device).copy_(bits).mul_(2.0**-13)
    small.mul_(2.0**24).add_(share).floor_().mul_(2.0**-24).copysign_(total)
    word = bits.add_(total.view(torch.int32)).bitwise_and_(-0x2000)
    result.copy_(torch.where(subnormal, small, word.view(torch.float32), out=share))
