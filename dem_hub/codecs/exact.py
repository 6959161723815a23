"""`exact`: the fine-tune bit for bit, as whole-number differences to the base, entropy-coded with zstd.

Floats of one sign are ordered like their bits, so that a fine-tune is its base plus a few steps on the grid of its own dtype; half of a
bfloat16 model does not move at all. Kept are a bitmap of what moved and the steps of that, byte by byte, in blocks of rows that are
compressed on their own, so that a part can be read alone. About a fifth of the checkpoint between bfloat16 files. (Compressing the
checkpoint itself, as for instance ZipNN does, gives two thirds.) Decoding needs the very base that the vector was taken from.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from dem_hub.checkpoint import CODES, DTYPES, LazyTensor
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout, Part
from dem_hub.codecs.packing import pack, packed_size, unpack
from dem_hub.errors import CheckpointError, CodecError
from dem_hub.index import Index, index_shape, rows_and_columns

_BLOCK = 1 << 20  # elements compressed together
_INTEGERS = {2: torch.int16, 4: torch.int32}
_DTYPES = tuple(code for code, dtype in DTYPES.items() if dtype.is_floating_point and dtype.itemsize in _INTEGERS)


@dataclass(frozen=True)
class Exact:
    """Store the fine-tune without loss; `level` (1 to 19) is zstd's: higher takes longer and saves a little."""

    name: ClassVar[str] = "exact"
    level: int = 3

    def __post_init__(self) -> None:
        """Refuse other levels."""
        if not isinstance(self.level, int) or not 1 <= self.level <= 19:
            raise CodecError(f"codec 'exact' has level={self.level!r}; it must be a whole number from 1 to 19.")

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """`zstd` (bytes,) uint8, `ends` (blocks,) int64 where each block ends in it, and `like` (0,) of the fine-tune's dtype."""
        blocks = len(_block_rows(shape)) - 1
        return {"zstd": Part(("U8",), ("bytes",)), "ends": Part(("I64",), (blocks,)), "like": Part(_DTYPES, (0,))}

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """The steps from base to fine-tune, block by block."""
        if CODES[finetuned.dtype] not in _DTYPES:
            raise CodecError(f"codec 'exact' has no {finetuned.dtype}; use 'dense' for this fine-tune.")
        width = finetuned.shape[-1] if finetuned.ndim else 1
        ours, theirs = base.reshape(-1, width), finetuned.reshape(-1, width)
        compressor = _zstd().ZstdCompressor(level=self.level)
        blobs = [
            compressor.compress(_to_bytes(_ordered(theirs[start:stop]) - _ordered(ours[start:stop].to(finetuned.dtype))))
            for start, stop in pairwise(_block_rows(tuple(finetuned.shape)))
        ]
        blob = torch.frombuffer(bytearray(b"".join(blobs)), dtype=torch.uint8) if blobs else torch.zeros(0, dtype=torch.uint8)
        ends = torch.tensor([len(part) for part in blobs], dtype=torch.int64).cumsum(0)
        return {"zstd": blob, "ends": ends, "like": finetuned.new_zeros(0)}

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: Tensor) -> Delta:
        """The slice `index` of fine-tune - base, in float64; `base` is that slice of the base's tensor."""
        whole, index = shape or (1,), index if shape else (slice(0, 1),)
        rows, columns = rows_and_columns(index, whole)
        dtype = DTYPES[parts["like"].get_dtype()]
        steps = self._steps(parts, whole, rows, columns, dtype)
        start = base.reshape(steps.shape)
        finetuned = _from_ordered(_ordered(start.to(dtype)) + steps.to(start.device), dtype)
        wanted, dense = finetuned.double(), finetuned.double() - start.double()
        rest = wanted - (start.double() + dense)  # of two values that are further apart than float64 has digits
        part = index_shape(index) if shape else ()
        return Delta(dense=dense.reshape(part), rest=rest.reshape(part) if rest.any() else None)

    @staticmethod
    def _steps(parts: Mapping[str, LazyTensor], shape: tuple[int, ...], rows: Tensor, columns: slice, dtype: torch.dtype) -> Tensor:
        """The steps of some rows and columns, from the blocks that they lie in."""
        found = torch.empty(len(rows), columns.stop - columns.start, dtype=_INTEGERS[dtype.itemsize])
        ends = [0, *parts["ends"][...].tolist()]
        if sorted(ends) != ends or ends[-1] != parts["zstd"].get_shape()[0]:
            raise CheckpointError("The blocks of the codec 'exact' do not fill what they are in. Fetch the vector again.")
        for number, (start, stop) in enumerate(pairwise(_block_rows(shape))):
            wanted = (rows >= start) & (rows < stop)
            if wanted.any():
                blob = parts["zstd"][ends[number] : ends[number + 1]].cpu().numpy().tobytes()
                block = _from_bytes(blob, (stop - start, shape[-1]), dtype)
                found[wanted] = block[rows[wanted] - start][:, columns]
        return found


def _zstd() -> Any:
    import zstandard

    return zstandard


def _block_rows(shape: tuple[int, ...]) -> list[int]:
    """Where blocks of rows begin, and where the last one ends."""
    *lead, width = shape or (1,)
    rows = 1
    for size in lead:
        rows *= size
    if not rows or not width:
        return [0]
    return [*range(0, rows, max(1, _BLOCK // width)), rows]


def _ordered(values: Tensor) -> Tensor:
    """The bits of floats as whole numbers in the order of the floats, with -0 below 0."""
    bits = values.contiguous().view(_INTEGERS[values.dtype.itemsize])
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)


def _from_ordered(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(numbers < 0, numbers ^ torch.iinfo(numbers.dtype).max, numbers).view(dtype)


def _to_bytes(steps: Tensor) -> bytes:
    """A bitmap of what is not 0, then the lowest byte of each such step, then the next: small steps of either sign have small bytes."""
    flat = steps.reshape(-1)
    moved = flat != 0
    zigzag = (flat << 1) ^ (flat >> (8 * flat.dtype.itemsize - 1))
    planes = zigzag[moved].contiguous().view(torch.uint8).view(-1, flat.dtype.itemsize)
    return torch.cat([pack(moved, 1), *planes.unbind(dim=1)]).cpu().numpy().tobytes()


def _from_bytes(blob: bytes, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """The steps of one block.

    Raises:
        `CheckpointError`: it is not what was written.
    """
    integer = _INTEGERS[dtype.itemsize]
    count = shape[0] * shape[1]
    size = packed_size(count, 1)
    try:
        claimed = _zstd().frame_content_size(blob)
        if not size <= claimed <= size + count * integer.itemsize:  # before that much memory is taken
            raise CheckpointError(
                f"A block of the codec 'exact' says that it holds {claimed} bytes for {count} elements. Fetch the vector again."
            )
        data = _zstd().ZstdDecompressor().decompress(blob)
    except _zstd().ZstdError as error:
        raise CheckpointError(f"A block of the codec 'exact' is not whole ({error}). Fetch the vector again.") from error
    moved = unpack(torch.frombuffer(bytearray(data[:size]), dtype=torch.uint8), 1)[:count].bool()
    if len(data) != size + int(moved.sum()) * integer.itemsize:
        raise CheckpointError(
            f"A block of the codec 'exact' has {len(data)} bytes, which is not what its bitmap says. Fetch the vector again."
        )
    steps = torch.zeros(count, dtype=integer)
    if len(data) > size:
        planes = torch.frombuffer(bytearray(data[size:]), dtype=torch.uint8).view(integer.itemsize, -1)
        zigzag = planes.T.reshape(-1).view(integer)
        low = zigzag & 1
        shifted = (zigzag >> 1) & torch.iinfo(integer).max  # a logical shift
        steps[moved] = shifted ^ -low
    return steps.view(shape)
