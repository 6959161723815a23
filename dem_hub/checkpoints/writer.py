"""Writing safetensors files one tensor at a time.

Each tensor's bytes are put down as they come and only the header is kept, in one canonical order, so that the same tensors give the
same file; safetensors' own writer needs all tensors in memory at once and orders its metadata at random.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import CODES, DTYPES
from dem_hub.defaults import MAX_SHARD_SIZE
from dem_hub.files.names import INDEX_SUFFIX, SAFETENSORS
from dem_hub.files.sizes import parse_size
from dem_hub.numerics.slices import count_elements
from dem_hub.numerics.threads import in_order


class TensorWriter:
    """Writes safetensors files tensor by tensor, `<stem>.safetensors`, or shards and an index past `max_shard_size`.

    A tensor's bytes go to a spool file as it comes; closing a shard puts the header before them. Memory is one tensor.
    """

    def __init__(self, folder: Path, stem: str = "model", max_shard_size: int | str = MAX_SHARD_SIZE) -> None:
        """Start writing into a folder that exists."""
        self._folder, self._stem, self._limit = folder, stem, parse_size(max_shard_size)
        self._header: dict[str, Any] = {}
        self._position = 0
        self._shards: list[list[str]] = []
        self._total = 0

    def write(self, name: str, tensor: Tensor) -> None:
        """Append one tensor of any device and dtype."""
        self.write_blocks(name, CODES[tensor.dtype], tuple(tensor.shape), iter((tensor,)))

    def write_blocks(self, name: str, dtype: str, shape: tuple[int, ...], blocks: Iterator[Tensor]) -> None:
        """Append one tensor that comes as consecutive blocks of rows."""
        size = DTYPES[dtype].itemsize * count_elements(shape)
        if self._header and self._position + size > self._limit:
            self._close_shard()
        start = self._position
        with self._spool_path.open("ab" if self._header else "wb") as spool:  # nothing stays open when a block fails
            for block in blocks:
                data = _as_bytes(block)
                spool.write(data.numpy().data)
                self._position += data.numel()
        if self._position - start != size:
            raise AssertionError(f"{name}: {self._position - start} bytes for {shape} of {dtype}")
        self._header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, self._position]}

    def close(self) -> list[Path]:
        """Finish: give the files their names and write the index. Returns the files, the index included."""
        if self._header:
            self._close_shard()
        count = len(self._shards)
        names = _shard_names(self._stem, count) if count else []
        for number, name in enumerate(names):
            self._part(number).replace(self._folder / name)
        files = [self._folder / name for name in names]
        if count > 1:
            weight_map = {tensor: name for name, tensors in zip(names, self._shards, strict=True) for tensor in tensors}
            files.append(self._folder / _index_name(self._stem))
            files[-1].write_text(_index_text(weight_map, self._total), "utf-8")
        return files

    @property
    def _spool_path(self) -> Path:
        return self._folder / f".{self._stem}.spool"

    def _part(self, number: int) -> Path:
        return self._folder / f".{self._stem}.{number}.part"

    def _close_shard(self) -> None:
        with self._part(len(self._shards)).open("wb") as file, self._spool_path.open("rb") as spool:
            file.write(encode_header(self._header))
            shutil.copyfileobj(spool, file, 1 << 22)
        self._spool_path.unlink()
        self._shards.append(list(self._header))
        self._total += self._position
        self._header, self._position = {}, 0


@dataclass(frozen=True)
class Outline:
    """One tensor to come: its name, safetensors dtype code, and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return DTYPES[self.dtype].itemsize * count_elements(self.shape)


Block = tuple[int, Callable[[], Tensor]]


@dataclass(frozen=True)
class Shard:
    """One file to come: its name, and its tensors in the order in which they come."""

    name: str
    outlines: tuple[Outline, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its tensors."""
        return sum(outline.nbytes for outline in self.outlines)

    @property
    def header(self) -> bytes:
        """What comes before them."""
        entries, position = {}, 0
        for outline in self.outlines:
            offsets = [position, position + outline.nbytes]
            entries[outline.name] = {"dtype": outline.dtype, "shape": list(outline.shape), "data_offsets": offsets}
            position += outline.nbytes
        return encode_header(entries)

    def holds(self, file: Path, nbytes: int) -> bool:
        """Whether a file has as many bytes as its header and the first so many of its tensors'."""
        return nbytes <= 0 or (file.is_file() and file.stat().st_size >= len(self.header) + min(nbytes, self.nbytes))


def plan_shards(
    outlines: Iterable[Outline], stem: str = "model", max_shard_size: int | str = MAX_SHARD_SIZE
) -> list[Shard]:
    """Divide tensors that are known in advance into files: `<stem>.safetensors`, or several past `max_shard_size`.

    Example:

    ```python
    >>> from dem_hub.checkpoints.writer import Outline, plan_shards
    >>> [shard.name for shard in plan_shards([Outline(name, "F32", (250,)) for name in "abc"], max_shard_size="2KB")]
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']

    ```
    """
    groups: list[list[Outline]] = [[]]
    limit, size = parse_size(max_shard_size), 0
    for outline in outlines:
        if groups[-1] and size + outline.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(outline)
        size += outline.nbytes
    return [Shard(name, tuple(group)) for name, group in zip(_shard_names(stem, len(groups)), groups, strict=True)]


def write_shard(file: Path, shard: Shard, blocks: Iterable[Block], start: int = 0) -> Iterator[int]:
    """Write a file whose header is known in advance: every byte once, straight to its place, from all cores.

    The header is put down last. Until then the file may have its full length, and no reader takes it for whole.

    Args:
        file (`Path`): the file.
        shard ([`Shard`]): what comes.
        blocks (`Iterable[Block]`): where each block of the tensors begins, in bytes after the header, and what makes it.
        start (`int`): how many bytes of the tensors are in the file already; the first block begins there.

    Yields:
        `int`: up to which byte of the tensors all are in the file, after each block.
    """
    header = shard.header
    with file.open("r+b" if start else "wb") as stream:
        stream.write(bytes(len(header)))
        stream.truncate(len(header) + start)

    def write(block: Block) -> int:
        begin, make = block
        data = _as_bytes(make())
        with file.open("r+b") as stream:  # of this thread alone, so that it stands where this thread put it
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
    """The name and text of the index of several shards; empty for a single one."""
    if len(shards) == 1:
        return {}
    weight_map = {outline.name: shard.name for shard in shards for outline in shard.outlines}
    stem = shards[0].name.rpartition("-00001-of-")[0]
    return {_index_name(stem): _index_text(weight_map, sum(shard.nbytes for shard in shards))}


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)


def _shard_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [stem + SAFETENSORS]
    return [f"{stem}-{number:05d}-of-{count:05d}{SAFETENSORS}" for number in range(1, count + 1)]


def _index_name(stem: str) -> str:
    return stem + SAFETENSORS + INDEX_SUFFIX


def _index_text(weight_map: Mapping[str, str], total: int) -> str:
    return json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True)


def encode_header(header: Mapping[str, Any]) -> bytes:
    """The head of a safetensors file: its length, then sorted compact JSON, padded so that the data is aligned to 8 bytes."""
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_file(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write one safetensors file whose bytes depend on the tensors alone, whole or not at all."""
    target = Path(path)
    writer = TensorWriter(target.parent, f".{target.name}.partial", 1 << 62)
    for name in sorted(tensors):
        writer.write(name, tensors[name])
    for file in writer.close():
        file.replace(target)
