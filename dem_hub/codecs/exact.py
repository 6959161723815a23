"""`exact`: the fine-tune bit for bit, as whole-number differences to the base, entropy-coded with zstd.

Floats of one sign are ordered like their bits, so a fine-tune is its base plus some steps on the grid of its own
dtype. The finer the grid, the more steps a change is: small weights move far, large ones hardly. So the elements of a
block of rows are sorted by the exponents of their base weights, which brings elements that move alike together, and
every run of them has a code of its own. Decoding needs the very base that the vector was taken from. (Compressing the
checkpoint itself, as for instance ZipNN does, leaves two thirds of its bytes.)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import CODES, DTYPES, LazyTensor
from dem_hub.codecs.codec import Codec
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout, Part
from dem_hub.codecs.packing import pack, packed_size, unpack
from dem_hub.errors import CheckpointError, CodecError
from dem_hub.numerics.precision import widest
from dem_hub.numerics.slices import Index, at_least_1d, index_shape, rows_and_columns

# Elements that are sorted together, and elements that share a code. Both are part of the file format: decoding needs
# the same values.
_BLOCK = 1 << 20
_RUN = 1 << 16
_INTEGERS = {2: torch.int16, 4: torch.int32}  # by the bytes of a float
_DTYPES = tuple(code for code, dtype in DTYPES.items() if dtype.is_floating_point and dtype.itemsize in _INTEGERS)


@dataclass(frozen=True)
class Exact(Codec):
    """Store the fine-tune without loss."""

    name: ClassVar[str] = "exact"

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return `True`: a tensor of any shape."""
        return True

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return the layout: `zstd` (bytes,) uint8, all frames; `ends` (frames,) int64, where each ends; `like` (0,),
        of the dtype.
        """
        return {"zstd": Part(("U8",), ("bytes",)), "ends": Part(("I64",), ("frames",)), "like": Part(_DTYPES, (0,))}

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Return the steps from base to fine-tune, compressed block by block and run by run."""
        if CODES[finetuned.dtype] not in _DTYPES:
            raise CodecError(f"codec 'exact' has no {finetuned.dtype}; use 'dense' for this fine-tune.")
        width = finetuned.shape[-1] if finetuned.ndim else 1
        base_rows = base.reshape(-1, width)
        finetuned_rows = finetuned.reshape(-1, width)
        compressor = _make_compressor()
        frames: list[bytes] = []
        for start, stop in pairwise(_block_rows(tuple(finetuned.shape))):
            block = base_rows[start:stop].to(finetuned.dtype)
            steps = _to_ordered(finetuned_rows[start:stop]) - _to_ordered(block)
            for run in torch.split(steps.reshape(-1)[_sort_by_exponent(block)].cpu(), _RUN):
                frames += [compressor.compress(plane.numpy().tobytes()) for plane in _to_planes(run)]
        ends = torch.tensor([len(frame) for frame in frames], dtype=torch.int64, device="cpu").cumsum(0)
        return {"zstd": _bytes_to_tensor(b"".join(frames)), "ends": ends, "like": finetuned.new_zeros(0)}

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """Return the slice `index` of fine-tune - base, in the widest dtype of its device.

        It is decoded from the blocks that its rows lie in.
        """
        is_scalar = not shape
        base_slice = base[index if shape else ...]
        shape, index = at_least_1d(shape, index)
        rows, columns = rows_and_columns(index, shape)
        dtype = widest(base_slice.device)
        base_rows = base_slice.reshape(len(rows), columns.stop - columns.start).to(dtype)
        finetuned = _decode_rows(parts, shape, rows, columns, base).to(base_rows.device).to(dtype)
        dense = finetuned - base_rows
        # Not zero where two values are further apart than this dtype has digits.
        rest = finetuned - (base_rows + dense)
        slice_shape = () if is_scalar else index_shape(index)
        return Delta(dense=dense.reshape(slice_shape), rest=rest.reshape(slice_shape) if rest.any() else None)


def _decode_rows(
    parts: Mapping[str, LazyTensor], shape: tuple[int, ...], rows: Tensor, columns: slice, base: LazyTensor
) -> Tensor:
    """Return some rows and columns of the fine-tune, in its dtype."""
    dtype = DTYPES[parts["like"].get_dtype()]
    finetuned = torch.empty(len(rows), columns.stop - columns.start, dtype=dtype, device="cpu")
    blocks = list(pairwise(_block_rows(shape)))
    ends = [0, *parts["ends"][...].tolist()]
    frames_before = [0, *accumulate(_count_frames((stop - start) * shape[-1], dtype) for start, stop in blocks)]
    if len(ends) != frames_before[-1] + 1 or sorted(ends) != ends or ends[-1] != parts["zstd"].get_shape()[0]:
        raise CheckpointError("The frames of the codec 'exact' do not fill what they are in. Fetch the vector again.")
    for number, (start, stop) in enumerate(blocks):
        wanted = (rows >= start) & (rows < stop)
        if not wanted.any():
            continue
        block_ends = ends[frames_before[number] : frames_before[number + 1] + 1]
        data = parts["zstd"][block_ends[0] : block_ends[-1]].cpu().numpy().tobytes()
        frames = [data[begin - block_ends[0] : end - block_ends[0]] for begin, end in pairwise(block_ends)]
        block = _read_base_rows(base, start, stop, shape).to(dtype)
        numbers = _to_ordered(block).reshape(-1)
        numbers[_sort_by_exponent(block)] += _decompress(frames, block.numel(), dtype)
        values = _from_ordered(numbers, dtype).view(block.shape)
        finetuned[wanted] = values[rows[wanted] - start][:, columns]
    return finetuned


def _zstd() -> Any:
    import zstandard

    return zstandard


def _make_compressor() -> Any:
    """Return a compressor that uses Huffman codes and little else: repetitions are chance here, and coding them costs
    more than it saves.
    """
    library = _zstd()
    settings = library.ZstdCompressionParameters(strategy=library.STRATEGY_FAST, min_match=7, hash_log=6, window_log=17)
    return library.ZstdCompressor(compression_params=settings)


def _bytes_to_tensor(content: bytes) -> Tensor:
    """Return bytes as a uint8 tensor. torch refuses an empty buffer."""
    if not content:
        return torch.zeros(0, dtype=torch.uint8, device="cpu")
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)


def _block_rows(shape: tuple[int, ...]) -> list[int]:
    """Return the rows where blocks begin, and the row where the last one ends."""
    *lead, width = shape or (1,)
    rows = math.prod(lead)
    if not rows or not width:
        return [0]
    return [*range(0, rows, max(1, _BLOCK // width)), rows]


def _to_ordered(values: Tensor) -> Tensor:
    """Return the bits of floats as whole numbers in the order of the floats, with -0 below 0."""
    bits = values.contiguous().view(_INTEGERS[values.dtype.itemsize])
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)


def _from_ordered(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.where(numbers < 0, numbers ^ torch.iinfo(numbers.dtype).max, numbers).view(dtype)


def _sort_by_exponent(block: Tensor) -> Tensor:
    """Return the positions of a block's elements, smallest exponents first.

    The sort is stable, so it is the same on every device.
    """
    bits = block.reshape(-1).view(_INTEGERS[block.dtype.itemsize])
    mantissa_bits = round(-math.log2(torch.finfo(block.dtype).eps))
    exponents = (bits & torch.iinfo(bits.dtype).max) >> mantissa_bits
    return exponents.to(torch.int16).argsort(stable=True)


def _count_frames(elements: int, dtype: torch.dtype) -> int:
    """Return the frames of a block: for each run a bitmap, and a plane for each byte of a step."""
    return -(-elements // _RUN) * (1 + dtype.itemsize)


def _to_planes(steps: Tensor) -> list[Tensor]:
    """Return a bitmap of the steps that are not 0, then the lowest byte of each such step, then the next byte, and so
    on.

    A zigzag code makes small numbers of small steps of either sign, so that the higher bytes are nearly all 0.
    """
    moved = steps != 0
    zigzag = (steps << 1) ^ (steps >> (8 * steps.dtype.itemsize - 1))
    return [pack(moved, 1), *zigzag[moved].view(torch.uint8).view(-1, steps.dtype.itemsize).T.contiguous()]


def _from_planes(planes: list[bytes], count: int, dtype: torch.dtype) -> Tensor:
    """Return the `count` steps of a run; the reverse of [`_to_planes`]."""
    bitmap, *byte_planes = map(_bytes_to_tensor, planes)
    moved = unpack(bitmap, 1)[:count].bool()
    if {len(plane) for plane in byte_planes} != {int(moved.sum())}:
        raise CheckpointError(
            "A run of the codec 'exact' does not have as many steps as its bitmap says. Fetch the vector again."
        )
    zigzag = torch.stack(byte_planes, dim=1).view(dtype).reshape(-1)
    steps = torch.zeros(count, dtype=dtype, device="cpu")
    # The mask turns the arithmetic shift into a logical one.
    steps[moved] = ((zigzag >> 1) & torch.iinfo(dtype).max) ^ -(zigzag & 1)
    return steps


def _decompress(frames: list[bytes], elements: int, dtype: torch.dtype) -> Tensor:
    """Return the steps of a block.

    Raises:
        `CheckpointError`: the frames are damaged, or hold another number of steps.
    """
    integer = _INTEGERS[dtype.itemsize]
    frames_of_run = 1 + dtype.itemsize
    decompressor = _zstd().ZstdDecompressor()
    runs = []
    for number, start in enumerate(range(0, elements, _RUN)):
        count = min(_RUN, elements - start)
        bitmap, *byte_planes = frames[number * frames_of_run : (number + 1) * frames_of_run]
        planes = [_decompress_frame(decompressor, bitmap, count, expected=packed_size(count, 1))]
        planes += [_decompress_frame(decompressor, plane, count) for plane in byte_planes]
        runs.append(_from_planes(planes, count, integer))
    return torch.cat(runs) if runs else torch.zeros(0, dtype=integer, device="cpu")


def _decompress_frame(decompressor: Any, frame: bytes, count: int, expected: int | None = None) -> bytes:
    """Return the content of one frame of a run of `count` elements.

    The size that the frame claims is checked first, because that much memory is taken for it.
    """
    library = _zstd()
    try:
        claimed = library.frame_content_size(frame)
        if claimed > count or (expected is not None and claimed != expected):
            raise CheckpointError(
                f"A run of the codec 'exact' says that it holds {claimed} bytes for {count} elements. "
                "Fetch the vector again."
            )
        content: bytes = decompressor.decompress(frame)
    except library.ZstdError as error:
        raise CheckpointError(f"A run of the codec 'exact' is not whole ({error}). Fetch the vector again.") from error
    return content


def _read_base_rows(base: LazyTensor, start: int, stop: int, shape: tuple[int, ...]) -> Tensor:
    """Return rows `start` to `stop` of the base's tensor, on the CPU, with all dimensions but the last flattened into
    rows.
    """
    *lead, width = shape
    if not lead or not base.get_shape():  # one dimension or a scalar, which is one row
        return base[...].reshape(-1, width).cpu()
    # Only whole entries of the first dimension can be read, and an entry may have many rows. So the entries that the
    # rows lie in are read, and what is around the rows is cut off.
    rows_per_entry = math.prod(lead[1:])
    first_entry = start // rows_per_entry
    past_last_entry = -(-stop // rows_per_entry)  # rounded up
    entries = base[first_entry:past_last_entry].reshape(-1, width).cpu()
    return entries[start - first_entry * rows_per_entry : stop - first_entry * rows_per_entry]
