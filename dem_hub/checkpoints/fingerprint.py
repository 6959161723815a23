"""The fingerprint of a base: a hash that is cheap, independent of sharding, and can say where two checkpoints differ.

Each tensor is hashed over its dtype, its shape and some of its bytes, in up to three ways. The first takes the fewest
bytes, and the last takes all of them:

1. *places*: 64 pieces, evenly spaced. A few requests fetch them from the Hub.
2. *blocks*: 8 bytes of every row, and of every 4,072 bytes of a longer row. So a change of one row cannot pass. The
   file is mapped for this. To read all of it takes 2.5 times as long or more (`benchmarks/fingerprint.py`), and a call
   of the system for each piece twice as long as that.
3. *bytes*: all of them. Only for `verify="full"`.

A digest, and a fingerprint, has the results joined by `-`, the last one first: `blocks-places`. Two of them agree if
the parts that both have agree. So what recorded the places alone, as the first version did, is compared by these.

Fingerprints are stored in every vector and recipe. No constant and no step here may change, or all of them would no
longer fit their bases. Another way to hash would be another part.
"""

import hashlib
import mmap
import os
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dem_hub.checkpoints.reader import Checkpoint, TensorInfo
from dem_hub.errors import CheckpointError
from dem_hub.hub.remembered import remembered

# Places: of a tensor, so many pieces of so many bytes are read, 4 kB at the most. Both chosen by hand, not measured.
SAMPLES = 64
SAMPLE_BYTES = 64
# Blocks: bytes of a piece, and the most bytes from the start of one piece to the start of the next. A page of memory
# is 4,096 bytes, and to look at a second piece of it costs almost nothing. 4,072 is 8 times a prime, so the pieces
# walk through all columns of a matrix of 510 rows, if a row is a multiple of 8 bytes: a change of one column is seen.
PIECE_BYTES = 8
LARGEST_STEP = 4072
# Bytes that are hashed at a time where all are. Chosen by hand, not measured.
_CHUNK = 1 << 20
# Hex digits of each part of a tensor's digest (64 bits).
_DIGEST_DIGITS = 16
_JOINT = "-"
# The end of the names of the files that remember the digests of a file's tensors.
_MEMORY = "_tensors"
# The parts of a fingerprint that saw all bytes.
_ALL_PARTS = 3


class Seekable(Protocol):
    """A file of which single places are read."""

    def seek(self, position: int, /) -> object: ...
    def read(self, size: int, /) -> bytes: ...


def places_digest(info: TensorInfo, stream: Seekable) -> str:
    """Return the digest of at most 4 kB of one tensor, 16 hex digits.

    Args:
        info ([`TensorInfo`]): Where the tensor is.
        stream ([`Seekable`]): Its file. A tensor of up to 4 kB is read whole. Of a larger one `SAMPLES` pieces of
            `SAMPLE_BYTES` are read, evenly spaced, both ends included.
    """
    state = _begin(info)
    if info.nbytes <= SAMPLES * SAMPLE_BYTES:
        positions = [info.start]
        size = info.nbytes
    else:
        span = info.nbytes - SAMPLE_BYTES
        positions = [info.start + span * number // (SAMPLES - 1) for number in range(SAMPLES)]
        size = SAMPLE_BYTES
    for position in positions:
        stream.seek(position)
        state.update(stream.read(size))
    return state.hexdigest()[:_DIGEST_DIGITS]


def blocks_digest(info: TensorInfo, places: str, content: mmap.mmap | memoryview) -> str:
    """Return the digest of `PIECE_BYTES` of every block of one tensor, and of its places, 16 hex digits.

    Args:
        info ([`TensorInfo`]): Where the tensor is.
        places (`str`): What [`places_digest`] returned.
        content (`mmap.mmap` or `memoryview`): Its file, or its bytes alone. Pieces begin at every multiple of [`block_step`], as far as they are whole.
    """
    state = _begin(info)
    # Messages show the beginning of a fingerprint, which must differ if anything does.
    state.update(places.encode())
    step = block_step(info)
    if step == PIECE_BYTES:
        state.update(memoryview(content)[info.start : info.stop])
    else:
        count = (info.nbytes - PIECE_BYTES) // step + 1
        state.update(np.ndarray(count, np.uint64, content, info.start, step).tobytes())
    return state.hexdigest()[:_DIGEST_DIGITS]


def block_step(info: TensorInfo) -> int:
    """Return the bytes from one piece of a tensor to the next: a multiple of 8, and 8 if all bytes are taken.

    A row (all elements with the same index but for the last dimension) is at least a step and a piece long, so each
    has a whole piece in it.
    """
    columns = (info.shape or (1,))[-1]
    row_bytes = columns * info.torch_dtype.itemsize
    longest = min(LARGEST_STEP, row_bytes - PIECE_BYTES)
    return max(PIECE_BYTES, longest // PIECE_BYTES * PIECE_BYTES)


def bytes_digest(info: TensorInfo, stream: Seekable) -> str:
    """Return the digest of all bytes of one tensor, 16 hex digits."""
    state = _begin(info)
    stream.seek(info.start)
    for start in range(0, info.nbytes, _CHUNK):
        state.update(stream.read(min(_CHUNK, info.nbytes - start)))
    return state.hexdigest()[:_DIGEST_DIGITS]


def tensor_digests(checkpoint: Checkpoint, *, full: bool = False) -> dict[str, str]:
    """Return the digest of each tensor of a checkpoint, by name.

    All pages of a file are looked at, which takes as long as to read it where it comes from a disk. So the digests of
    large files are remembered.

    Args:
        checkpoint ([`Checkpoint`]): The checkpoint.
        full (`bool`, *optional*, defaults to `False`): Hash all bytes, too. Nothing that is remembered counts.

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If a file has become shorter.
    """
    by_file: dict[Path, dict[str, TensorInfo]] = {}
    for name, info in checkpoint.items():
        by_file.setdefault(info.file, {})[name] = info
    digests: dict[str, str] = {}
    with ThreadPoolExecutor() as pool:
        for file, tensors in by_file.items():
            if full:
                digests |= _digests(tensors, pool, full=True)
            else:
                digests |= _digests_once(file, tensors, pool)
    return {name: digests[name] for name in checkpoint}


def _digests_once(file: Path, tensors: Mapping[str, TensorInfo], pool: Executor) -> dict[str, str]:
    """Return the digests of all tensors of a file, from memory if the file has not changed since."""

    def work_out(_: Path) -> dict[str, str]:
        return _digests(tensors, pool)

    digests = remembered(file, _MEMORY, work_out)
    if isinstance(digests, dict) and digests.keys() == tensors.keys():
        return digests
    return work_out(file)  # the memory was damaged


def _digests(tensors: Mapping[str, TensorInfo], pool: Executor, *, full: bool = False) -> dict[str, str]:
    return dict(zip(tensors, pool.map(partial(_digest, full=full), tensors.values()), strict=True))


def _digest(info: TensorInfo, *, full: bool) -> str:
    """Return the digest of one tensor on this machine, with all of its parts."""
    # Without a buffer, in which every read of 64 bytes would fetch kilobytes.
    with info.file.open("rb", buffering=0) as stream:
        parts = [places_digest(info, stream)]
        # A read beyond the end of a mapped file would end the process.
        if os.fstat(stream.fileno()).st_size < info.stop:
            raise CheckpointError(f"'{info.file}' has become shorter while it was read. Run it again.")
        with closing(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)) as content:
            parts.append(blocks_digest(info, parts[0], content))
        if full:
            parts.append(bytes_digest(info, stream))
    return _JOINT.join(reversed(parts))


def values_digest(values: Tensor, info: TensorInfo, *, full: bool = False) -> str:
    """Return the digest that a tensor in memory has once it is written, with all of its parts.

    Args:
        values (`Tensor`): The tensor, on the CPU.
        info ([`TensorInfo`]): Its dtype and shape; its bytes count from 0.
        full (`bool`, *optional*, defaults to `False`): Hash all bytes, too.
    """
    content = values.contiguous().view(-1).view(torch.uint8).numpy().data
    stream = _Bytes(content)
    parts = [places_digest(info, stream)]
    parts.append(blocks_digest(info, parts[0], content))
    if full:
        parts.append(bytes_digest(info, stream))
    return _JOINT.join(reversed(parts))


@dataclass
class _Bytes:
    """Bytes in memory as a file to read single places of, without a copy of all of them."""

    content: memoryview
    position: int = 0

    def seek(self, position: int) -> None:
        self.position = position

    def read(self, size: int) -> bytes:
        start = self.position
        self.position += size
        return bytes(self.content[start : self.position])


def fingerprint(digests: Mapping[str, str]) -> str:
    """Return the fingerprint of a checkpoint: 64 hex digits for each part of the digests.

    Args:
        digests (`Mapping[str, str]`): The digest of each of its tensors, by name, in any order. All have the same
            parts.

    Example:

    ```python
    >>> from dem_hub.checkpoints.fingerprint import fingerprint
    >>> fingerprint({"a": "00", "b": "11"}) == fingerprint({"b": "11", "a": "00"})
    True

    ```
    """
    names = sorted(digests)
    hashes = []
    for parts in zip(*(digests[name].split(_JOINT) for name in names), strict=True):
        lines = "".join(f"{name} {part}\n" for name, part in zip(names, parts, strict=True))
        hashes.append(hashlib.sha256(lines.encode()).hexdigest())
    return _JOINT.join(hashes)


def agree(one: str | None, other: str | None) -> bool:
    """Check whether two digests, or two fingerprints, agree in all parts that both have.

    One that is not known (`None`, such as the fingerprint of an adapter's base) agrees with another such alone.

    Example:

    ```python
    >>> from dem_hub.checkpoints.fingerprint import agree
    >>> agree("b7-a8", "a8"), agree("b7-a8", "b7"), agree("b7-a8", "c0-a8")
    (True, False, False)

    ```
    """
    if one is None or other is None:
        return one is other
    pairs = zip(reversed(one.split(_JOINT)), reversed(other.split(_JOINT)), strict=False)
    return all(part == other_part for part, other_part in pairs)


def saw_all_bytes(fingerprint: str) -> bool:
    """Check whether a fingerprint has a hash of all bytes."""
    return len(fingerprint.split(_JOINT)) >= _ALL_PARTS


def without_bytes(fingerprint: str | None) -> str | None:
    """Return a fingerprint without the hash of all bytes, as it is if not all are hashed."""
    if fingerprint is None:
        return None
    return _JOINT.join(fingerprint.split(_JOINT)[-(_ALL_PARTS - 1) :])


def _begin(info: TensorInfo) -> "hashlib._Hash":
    return hashlib.sha256(f"{info.dtype} {list(info.shape)} ".encode())
