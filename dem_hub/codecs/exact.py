"""`exact`: the fine-tune bit for bit, as whole-number differences to the base, entropy-coded with zstd.

Floats of one sign are ordered like their bits, so that a fine-tune is its base plus a few steps on the grid of its own dtype. The finer
that grid, the more steps a change is: small weights move far, large ones hardly. So the elements of a block of rows are put in the order
of their base weights' exponents, in which neighbours move alike, and every run of them has a code of its own. Decoding needs the very
base that the vector was taken from. (Compressing the checkpoint itself, as for instance ZipNN does, leaves two thirds of it.)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import CODES, DTYPES, LazyTensor
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout, Part
from dem_hub.codecs.packing import pack, packed_size, unpack
from dem_hub.errors import CheckpointError, CodecError
from dem_hub.numerics.slices import Index, index_shape, rows_and_columns

_BLOCK = 1 << 20  # elements that are put in order together
_RUN = 1 << 16  # elements that share a code
_INTEGERS = {2: torch.int16, 4: torch.int32}
_DTYPES = tuple(code for code, dtype in DTYPES.items() if dtype.is_floating_point and dtype.itemsize in _INTEGERS)


@dataclass(frozen=True)
class Exact:
    """Store the fine-tune without loss."""

    name: ClassVar[str] = "exact"

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """`zstd` (bytes,) uint8; `ends` (frames,) int64, where each frame ends in it; `like` (0,) of the fine-tune's dtype."""
        return {"zstd": Part(("U8",), ("bytes",)), "ends": Part(("I64",), ("frames",)), "like": Part(_DTYPES, (0,))}

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """The steps from base to fine-tune, block by block and run by run."""
        if CODES[finetuned.dtype] not in _DTYPES:
            raise CodecError(f"codec 'exact' has no {finetuned.dtype}; use 'dense' for this fine-tune.")
        width = finetuned.shape[-1] if finetuned.ndim else 1
        ours, theirs = base.reshape(-1, width), finetuned.reshape(-1, width)
        compress = _compressor().compress
        frames: list[bytes] = []
        for start, stop in pairwise(_block_rows(tuple(finetuned.shape))):
            block = ours[start:stop].to(finetuned.dtype)
            steps = (_ordered(theirs[start:stop]) - _ordered(block)).reshape(-1)[_order(block)].cpu()
            frames += [compress(plane.numpy().tobytes()) for run in torch.split(steps, _RUN) for plane in _planes(run)]
        blob = (
            torch.frombuffer(bytearray(b"".join(frames)), dtype=torch.uint8)
            if frames
            else torch.zeros(0, dtype=torch.uint8)
        )
        ends = torch.tensor([len(frame) for frame in frames], dtype=torch.int64).cumsum(0)
        return {"zstd": blob, "ends": ends, "like": finetuned.new_zeros(0)}

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """The slice `index` of fine-tune - base, in float64, from the blocks that it lies in and the base's rows there."""
        whole, index = shape or (1,), index if shape else (slice(0, 1),)
        rows, columns = rows_and_columns(index, whole)
        start = base[index if shape else ...].reshape(len(rows), columns.stop - columns.start)
        finetuned = self._finetuned(parts, whole, rows, columns, base).to(start.device)
        wanted, dense = finetuned.double(), finetuned.double() - start.double()
        rest = wanted - (start.double() + dense)  # of two values that are further apart than float64 has digits
        part = index_shape(index) if shape else ()
        return Delta(dense=dense.reshape(part), rest=rest.reshape(part) if rest.any() else None)

    @staticmethod
    def _finetuned(
        parts: Mapping[str, LazyTensor], shape: tuple[int, ...], rows: Tensor, columns: slice, base: LazyTensor
    ) -> Tensor:
        """Some rows and columns of the fine-tune, in its dtype."""
        dtype = DTYPES[parts["like"].get_dtype()]
        found = torch.empty(len(rows), columns.stop - columns.start, dtype=dtype)
        blocks = _block_rows(shape)
        ends = [0, *parts["ends"][...].tolist()]
        frames = [0, *accumulate(_frame_count((stop - start) * shape[-1], dtype) for start, stop in pairwise(blocks))]
        if len(ends) != frames[-1] + 1 or sorted(ends) != ends or ends[-1] != parts["zstd"].get_shape()[0]:
            raise CheckpointError(
                "The frames of the codec 'exact' do not fill what they are in. Fetch the vector again."
            )
        for number, (start, stop) in enumerate(pairwise(blocks)):
            wanted = (rows >= start) & (rows < stop)
            if not wanted.any():
                continue
            first, last = frames[number], frames[number + 1]
            data = parts["zstd"][ends[first] : ends[last]].cpu().numpy().tobytes()
            block = _rows_of(base, start, stop, shape).to(dtype)
            lengths = [end - ends[first] for end in ends[first : last + 1]]
            steps = _decompress([data[a:b] for a, b in pairwise(lengths)], block.numel(), dtype)
            numbers = _ordered(block).reshape(-1)
            numbers[_order(block)] += steps
            found[wanted] = _from_ordered(numbers, dtype).view(block.shape)[rows[wanted] - start][:, columns]
        return found


def _zstd() -> Any:
    import zstandard

    return zstandard


def _compressor() -> Any:
    """Huffman codes and little else: what looks like a repetition here is chance, and coding it costs more than it saves."""
    library = _zstd()
    settings = library.ZstdCompressionParameters(strategy=library.STRATEGY_FAST, min_match=7, hash_log=6, window_log=17)
    return library.ZstdCompressor(compression_params=settings)


def _block_rows(shape: tuple[int, ...]) -> list[int]:
    """Where blocks of rows begin, and where the last one ends."""
    *lead, width = shape or (1,)
    rows = math.prod(lead)
    if not rows or not width:
        return [0]
    return [*range(0, rows, max(1, _BLOCK // width)), rows]


def _ordered(values: Tensor) -> Tensor:
    """The bits of floats as whole numbers in the order of the floats, with -0 below 0."""
    bits = values.contiguous().view(_INTEGERS[values.dtype.itemsize])
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)


def _from_ordered(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(numbers < 0, numbers ^ torch.iinfo(numbers.dtype).max, numbers).view(dtype)


def _order(block: Tensor) -> Tensor:
    """The positions of a block's elements, those with the smallest exponents first; the same whatever the device."""
    bits = block.reshape(-1).view(_INTEGERS[block.dtype.itemsize])
    mantissa = round(-math.log2(torch.finfo(block.dtype).eps))
    exponents = (bits & torch.iinfo(bits.dtype).max) >> mantissa
    return exponents.to(torch.int16).argsort(stable=True)


def _frame_count(elements: int, dtype: torch.dtype) -> int:
    return -(-elements // _RUN) * (1 + dtype.itemsize)


def _planes(steps: Tensor) -> list[Tensor]:
    """A bitmap of what is not 0, then the lowest byte of each such step, then the next: small steps of either sign have small bytes."""
    moved = steps != 0
    zigzag = (steps << 1) ^ (steps >> (8 * steps.dtype.itemsize - 1))
    return [pack(moved, 1), *zigzag[moved].view(torch.uint8).view(-1, steps.dtype.itemsize).T.contiguous()]


def _from_planes(planes: list[bytes], count: int, dtype: torch.dtype) -> Tensor:
    """The steps of a run."""
    bitmap, *others = (
        torch.frombuffer(bytearray(plane), dtype=torch.uint8) if plane else torch.zeros(0).byte() for plane in planes
    )
    moved = unpack(bitmap, 1)[:count].bool()
    if {len(plane) for plane in others} != {int(moved.sum())}:
        raise CheckpointError(
            "A run of the codec 'exact' does not have as many steps as its bitmap says. Fetch the vector again."
        )
    zigzag = torch.stack(others, dim=1).view(dtype).reshape(-1)
    steps = torch.zeros(count, dtype=dtype)
    steps[moved] = ((zigzag >> 1) & torch.iinfo(dtype).max) ^ -(zigzag & 1)  # a logical shift
    return steps


def _decompress(frames: list[bytes], elements: int, dtype: torch.dtype) -> Tensor:
    """The steps of a block.

    Raises:
        `CheckpointError`: it is not what was written.
    """
    integer = _INTEGERS[dtype.itemsize]
    size = 1 + dtype.itemsize
    library, runs = _zstd(), []
    decompress = library.ZstdDecompressor().decompress
    for number, start in enumerate(range(0, elements, _RUN)):
        count = min(_RUN, elements - start)
        planes = []
        for place, frame in enumerate(frames[number * size : (number + 1) * size]):
            try:
                claimed = library.frame_content_size(frame)
                if claimed > count or (
                    place == 0 and claimed != packed_size(count, 1)
                ):  # before that much memory is taken
                    raise CheckpointError(
                        f"A run of the codec 'exact' says that it holds {claimed} bytes for {count} elements. Fetch the vector again."
                    )
                planes.append(decompress(frame))
            except library.ZstdError as error:
                raise CheckpointError(
                    f"A run of the codec 'exact' is not whole ({error}). Fetch the vector again."
                ) from error
        runs.append(_from_planes(planes, count, integer))
    return torch.cat(runs) if runs else torch.zeros(0, dtype=integer)


def _rows_of(base: LazyTensor, start: int, stop: int, shape: tuple[int, ...]) -> Tensor:
    """Rows of the base's tensor, on the CPU, with all dimensions but the last flattened into rows."""
    *lead, width = shape
    each = math.prod(lead[1:])  # rows in one entry of the first dimension
    if not lead or not base.get_shape():
        return base[...].reshape(-1, width).cpu()
    first = start // each
    part = base[first : -(-stop // each)].reshape(-1, width).cpu()
    return part[start - first * each : stop - first * each]
