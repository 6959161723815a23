"""Random bits by position: a hash of seed, tensor name, row and column, not the draw of a sequential generator.

So the bits are the same on every device, for a whole tensor or any slice of it, in any order. One 32-bit hash serves
two elements.
"""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dem_hub.numerics.buffers import Buffer, scratch
from dem_hub.numerics.slices import Index, rows_and_columns

# Random values are clamped to [MARGIN, maximum - MARGIN]. A float32 sum can be off by two units in the last place.
# Without the clamp, such an error could round past a neighbour of the exact result, or move a sum that the target can
# represent.
MARGIN = 2


@dataclass(frozen=True)
class Noise:
    """The random bits of a part of a tensor, not drawn yet. All dimensions but the last are flattened into rows."""

    state: tuple[int, int]  # two 32-bit words, from the seed and the tensor's name
    rows: Tensor  # (rows,) int32, the number of each row in the whole tensor
    columns: slice

    @classmethod
    def of(cls, seed: int, name: str, index: Index, shape: tuple[int, ...], device: torch.device) -> "Noise":
        """Return the noise of the part `index` of the tensor `name`, whose full shape is `shape`."""
        rows, columns = rows_and_columns(index, shape)
        return cls(_state(seed, name), rows.to(device, torch.int32), columns)

    def part(self, index: Index, shape: tuple[int, ...]) -> "Noise":
        """Return the noise of rows `index[0]` of this part, whose shape is `shape`."""
        if not index:
            return self
        wanted = index[0]
        if len(shape) == 1:
            first = self.columns.start
            return replace(self, columns=slice(first + wanted.start, first + wanted.stop))
        rows = len(self.rows) // shape[0]  # flattened rows in one entry of the first dimension
        return replace(self, rows=self.rows[wanted.start * rows : wanted.stop * rows])

    @property
    def keys(self) -> Tensor:
        """The hash of each row, which [`random_bits`] takes: (rows,) int32."""
        return _keys(self.state, self.rows)


def random_bits(row_keys: Tensor, start: int, stop: int) -> Buffer:
    """Return 16 random bits for each element of some rows and a range of columns.

    Args:
        row_keys (`Tensor`): (rows,) int32, from seed, name and row number; see [`row_keys`].
        start, stop (`int`): the first column, and the one after the last.

    Returns:
        `Tensor`: (rows, stop - start) int32, 0 to 65535. On the CPU it is a buffer: valid until this thread's next
            call.
    """
    device = row_keys.device
    first = start >> 1
    pairs = torch.arange(first, (stop + 1) >> 1, dtype=torch.int32, device=device)
    words = scratch("words", (len(row_keys), len(pairs)), torch.int32, device)
    # The factor is 2^32 / golden ratio, as a signed number: it takes neighbouring columns far apart.
    torch.add(row_keys[:, None], (pairs * -1640531527)[None, :], out=words)
    halves = _mix(words).view(-1).view(torch.int16).view(len(row_keys), 2 * len(pairs))
    halves = halves[:, start - 2 * first : stop - 2 * first]
    return scratch("bits", tuple(halves.shape), torch.int32, device).copy_(halves).bitwise_and_(0xFFFF)


def row_keys(seed: int, name: str, rows: Tensor) -> Tensor:
    """Return a 32-bit hash of seed, name and row number for each row: (rows,) int32."""
    return _keys(_state(seed, name), rows.to(torch.int32))


def _state(seed: int, name: str) -> tuple[int, int]:
    digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
    return int.from_bytes(digest[:4], "little", signed=True), int.from_bytes(digest[4:8], "little", signed=True)


def _keys(state: tuple[int, int], rows: Tensor) -> Tensor:
    return _mix(_mix(rows + state[0]).bitwise_xor_(state[1]))


def _mix(word: Tensor) -> Tensor:
    """Apply the 32-bit integer hash `lowbias32` (C. Wellons, 2018) in place, in int32 arithmetic that wraps."""
    word = _fold(word, 16, 0xFFFF).mul_(0x7FEB352D)
    word = _fold(word, 15, 0x1FFFF).mul_(-2073254261)  # 0x846CA68B
    return _fold(word, 16, 0xFFFF)


def _fold(word: Tensor, shift: int, mask: int) -> Tensor:
    """Compute word ^= word >> shift in place.

    The mask removes the copies of the sign bit that an arithmetic shift brings in.
    """
    high = scratch("high", tuple(word.shape), torch.int32, word.device)
    return word.bitwise_xor_(torch.bitwise_right_shift(word, shift, out=high).bitwise_and_(mask))
