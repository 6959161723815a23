"""Writing safetensors files one tensor at a time.

Each tensor's bytes are written as they come, and only the header is kept in memory. The header has one canonical
order, so that the same tensors always give the same file. The writer of safetensors itself needs all tensors in
memory at once, and orders its metadata at random.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import CODES, DTYPES
from dem_hub.defaults import MAX_SHARD_SIZE
from dem_hub.files.atomic import atomic_file
from dem_hub.files.names import INDEX_SUFFIX, SAFETENSORS
from dem_hub.files.sizes import parse_size
from dem_hub.numerics.threads import in_order

# The dtypes, by name, in which a merged model or an adapter can be written.
FLOAT_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

# A limit on the size of a shard that no shard reaches.
UNLIMITED = 1 << 62

# Bytes that are copied at a time from the spool file into a shard. Chosen by hand, not measured.
_COPY_BYTES = 1 << 22


class TensorWriter:
    """A writer of tensors whose names and sizes are not known in advance.

    It writes `<stem>.safetensors`, or shards and an index beyond `max_shard_size`. The bytes of a shard go to a
    spool file as they come. When the shard is closed, its header is written, and the bytes after it. No more than
    one tensor is in memory.
    """

    def __init__(self, folder: Path, stem: str = "model", max_shard_size: int | str = MAX_SHARD_SIZE) -> None:
        """Start writing.

        Args:
            folder (`Path`): A folder that exists.
            stem (`str`, *optional*, defaults to `"model"`): The beginning of the names of the files.
            max_shard_size (`int` or `str`, *optional*): The largest size of a file in bytes, or as a text such as
                `"5GB"`. A larger tensor has a file of its own.
        """
        self._folder = folder
        self._stem = stem
        self._limit = parse_size(max_shard_size)
        self._header: dict[str, Any] = {}  # of the current shard
        self._position = 0  # bytes in the current shard
        self._shards: list[list[str]] = []  # the tensors of each closed shard
        self._total = 0  # bytes in closed shards

    def write(self, name: str, tensor: Tensor) -> None:
        """Append one tensor of any device and dtype."""
        self.write_blocks(name, CODES[tensor.dtype], tuple(tensor.shape), iter((tensor,)))

    def write_blocks(self, name: str, dtype: str, shape: tuple[int, ...], blocks: Iterator[Tensor]) -> None:
        """Append one tensor that comes in blocks of rows.

        Args:
            name (`str`): The tensor's name.
            dtype (`str`): Its dtype, as a safetensors code.
            shape (`tuple[int, ...]`): Its whole shape.
            blocks (`Iterator[Tensor]`): Its rows, in order.
        """
        size = DTYPES[dtype].itemsize * math.prod(shape)
        if self._header and self._position + size > self._limit:
            self._close_shard()
        start = self._position
        mode = "ab" if self._header else "wb"
        # Opened for each tensor: if a block fails, no file stays open.
        with self._spool_path.open(mode) as spool:
            for block in blocks:
                data = _as_bytes(block)
                spool.write(data.numpy().data)
                self._position += data.numel()
        if self._position - start != size:
            raise AssertionError(f"{name}: {self._position - start} bytes for {shape} of {dtype}")
        self._header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, self._position]}

    def close(self) -> list[Path]:
        """Give the files their names, write the index, and return the paths of all of them."""
        if self._header:
            self._close_shard()
        if not self._shards:
            return []
        names = _shard_names(self._stem, len(self._shards))
        files = []
        for number, name in enumerate(names):
            file = self._folder / name
            self._part(number).replace(file)
            files.append(file)
        if len(names) > 1:
            index = self._folder / _index_name(self._stem)
            index.write_text(_index_text(dict(zip(names, self._shards, strict=True)), self._total), "utf-8")
            files.append(index)
        return files

    @property
    def _spool_path(self) -> Path:
        return self._folder / f".{self._stem}.spool"

    def _part(self, number: int) -> Path:
        return self._folder / f".{self._stem}.{number}.part"

    def _close_shard(self) -> None:
        with self._part(len(self._shards)).open("wb") as file, self._spool_path.open("rb") as spool:
            file.write(encode_header(self._header))
            shutil.copyfileobj(spool, file, _COPY_BYTES)
        self._spool_path.unlink()
        self._shards.append(list(self._header))
        self._total += self._position
        self._header = {}
        self._position = 0


@dataclass(frozen=True)
class Outline:
    """A tensor that will be written: its name, its dtype as a safetensors code, and its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return DTYPES[self.dtype].itemsize * math.prod(self.shape)


# Where a block begins, in bytes after the header, and the function that computes its tensor.
Block = tuple[int, Callable[[], Tensor]]


@dataclass(frozen=True)
class Shard:
    """A file that will be written: its name, and its tensors in the order of their bytes."""

    name: str
    outlines: tuple[Outline, ...]

    @property
    def nbytes(self) -> int:
        """The size of its tensors in bytes, without the header."""
        return sum(outline.nbytes for outline in self.outlines)

    @property
    def header(self) -> bytes:
        """The bytes before the tensors."""
        entries = {}
        position = 0
        for outline in self.outlines:
            offsets = [position, position + outline.nbytes]
            entries[outline.name] = {"dtype": outline.dtype, "shape": list(outline.shape), "data_offsets": offsets}
            position += outline.nbytes
        return encode_header(entries)

    @property
    def file_size(self) -> int:
        """The size of the file in bytes."""
        return len(self.header) + self.nbytes

    def holds(self, file: Path, nbytes: int) -> bool:
        """Check whether a file is long enough for the header and the first `nbytes` bytes of the tensors."""
        if nbytes <= 0:
            return True
        return file.is_file() and file.stat().st_size >= len(self.header) + min(nbytes, self.nbytes)


def plan_shards(
    outlines: Iterable[Outline], stem: str = "model", max_shard_size: int | str = MAX_SHARD_SIZE
) -> list[Shard]:
    """Divide tensors that are known in advance into files: `<stem>.safetensors`, or several beyond `max_shard_size`.

    Args:
        outlines (`Iterable[Outline]`): The tensors, in the order in which they will be written.
        stem (`str`, *optional*, defaults to `"model"`): The beginning of the names of the files.
        max_shard_size (`int` or `str`, *optional*): The largest size of a file in bytes, or as a text such as
            `"5GB"`. A larger tensor has a file of its own.

    Example:

    ```python
    >>> from dem_hub.checkpoints.writer import Outline, plan_shards
    >>> [shard.name for shard in plan_shards([Outline(name, "F32", (250,)) for name in "abc"], max_shard_size="2KB")]
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']

    ```
    """
    groups: list[list[Outline]] = [[]]
    limit = parse_size(max_shard_size)
    size = 0
    for outline in outlines:
        if groups[-1] and size + outline.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(outline)
        size += outline.nbytes
    return [Shard(name, tuple(group)) for name, group in zip(_shard_names(stem, len(groups)), groups, strict=True)]


def write_shard(file: Path, shard: Shard, blocks: Iterable[Block], start: int = 0) -> Iterator[int]:
    """Write a file whose header is known in advance: every byte once, directly at its place, from all cores.

    The header is written last. Until then the file may have its full length, but no reader accepts it as complete.

    Args:
        file (`Path`): The file.
        shard ([`Shard`]): Its name and tensors.
        blocks (`Iterable[Block]`): For each block of the tensors, in order, where it begins (in bytes after the
            header) and the function that computes it. The functions are called from several threads.
        start (`int`, *optional*, defaults to 0): How many bytes of the tensors are in the file already. The first
            block begins there.

    Yields:
        `int`: After each block, the number of bytes from the first on that are all in the file.
    """
    header = shard.header
    with file.open("r+b" if start else "wb") as stream:
        # Zeros in the place of the header, which no reader accepts.
        stream.write(bytes(len(header)))
        stream.truncate(len(header) + start)

    def write(block: Block) -> int:
        begin, compute = block
        data = _as_bytes(compute())
        # Each thread has a stream of its own: the position of a shared one would be moved by the other threads.
        with file.open("r+b") as stream:
            stream.seek(len(header) + begin)
            stream.write(data.numpy().data)
        return begin + data.numel()

    written = start
    for written in in_order(write, blocks):
        yield written
    if written != shard.nbytes:
        raise AssertionError(f"{shard.name}: {written} bytes for {shard.nbytes}")
    with file.open("r+b") as stream:
        stream.write(header)


def shard_index(shards: Sequence[Shard]) -> dict[str, str]:
    """Return the name and the text of the index of several shards; a single one has none."""
    if len(shards) == 1:
        return {}
    tensors = {shard.name: [outline.name for outline in shard.outlines] for shard in shards}
    stem = shards[0].name.rpartition("-00001-of-")[0]
    return {_index_name(stem): _index_text(tensors, sum(shard.nbytes for shard in shards))}


def _as_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes of a tensor, on the CPU."""
    return tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)


def _shard_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [stem + SAFETENSORS]
    return [f"{stem}-{number:05d}-of-{count:05d}{SAFETENSORS}" for number in range(1, count + 1)]


def _index_name(stem: str) -> str:
    return stem + SAFETENSORS + INDEX_SUFFIX


def _index_text(tensors: Mapping[str, Sequence[str]], total: int) -> str:
    """Return the text of an index, given the tensors of each file and the size of all of them."""
    weight_map: dict[str, str] = {}
    for file, names in tensors.items():
        weight_map |= dict.fromkeys(names, file)
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True)


def encode_header(header: Mapping[str, Any]) -> bytes:
    """Return the beginning of a safetensors file: the length of the header in 8 bytes, and the header.

    The header is compact JSON with sorted keys.

    Args:
        header (`Mapping[str, Any]`): The entry of each tensor, by its name.
    """
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}, sort_keys=True, separators=(",", ":")).encode()
    # Padded with spaces, so that the data begins at a multiple of 8 bytes.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_file(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file whose bytes depend on the tensors alone, complete or not at all."""
    outlines = [Outline(name, CODES[tensors[name].dtype], tuple(tensors[name].shape)) for name in sorted(tensors)]
    shard = Shard(Path(path).name, tuple(outlines))
    with atomic_file(Path(path), shared=True) as partial, partial.open("wb") as stream:
        stream.write(shard.header)
        for outline in outlines:
            stream.write(_as_bytes(tensors[outline.name]).numpy().data)


@contextmanager
def system_errors() -> Iterator[None]:
    """Turn the error of safetensors' own writer (a full disk, no permission) into an `OSError`."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(str(error)) from error
