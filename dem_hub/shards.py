"""Writing safetensors files one tensor at a time.

Each tensor's bytes are put down as they come and only the header is kept, in one canonical order, so that the same tensors give the
same file; safetensors' own writer needs all tensors in memory at once and orders its metadata at random.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dem_hub.checkpoint import CODES, DTYPES
from dem_hub.errors import CheckpointError
from dem_hub.index import count_elements

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)", re.IGNORECASE)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(size: int | str) -> int:
    """A size in bytes: a number, or a text such as `"5GB"` (powers of ten, as in transformers).

    Raises:
        `CheckpointError`: the text is no size.

    Example:

    ```python
    >>> from dem_hub.shards import parse_size
    >>> parse_size("5GB")
    5000000000

    ```
    """
    if isinstance(size, int) or size.isdigit():
        return int(size)
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise CheckpointError(f"'{size}' is not a size. Write a number of bytes, or for instance '5GB'.")
    return int(float(match[1]) * _UNITS[match[2].upper()])


class TensorWriter:
    """Writes safetensors files tensor by tensor, `<stem>.safetensors`, or shards and an index past `max_shard_size`.

    A tensor's bytes go to a spool file as it comes; closing a shard puts the header before them. Memory is one tensor.
    """

    def __init__(self, folder: Path, stem: str = "model", max_shard_size: int | str = "5GB") -> None:
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
            files.append(_write_index(self._folder, self._stem, weight_map, self._total))
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


def write_outlined(
    folder: Path, outlines: Sequence[Outline], blocks: Iterator[Tensor], stem: str = "model", max_shard_size: int | str = "5GB"
) -> list[Path]:
    """Write tensors that are known in advance: headers first, and every byte once, straight to its place.

    Args:
        folder (`Path`): one that exists.
        outlines (`Sequence[Outline]`): the tensors, in the order in which they come.
        blocks (`Iterator[Tensor]`): their elements in that order, in consecutive blocks of rows; a block has parts of one tensor only.
        stem (`str`): of the files: `<stem>.safetensors`, or shards and an index past `max_shard_size`.
        max_shard_size (`int` or `str`): where to begin another file.

    Returns:
        `list[Path]`: the files, the index included.
    """
    shards: list[list[Outline]] = [[]]
    limit, size = parse_size(max_shard_size), 0
    for outline in outlines:
        if shards[-1] and size + outline.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(outline)
        size += outline.nbytes
    files = [folder / name for name in _shard_names(stem, len(shards))]
    for file, shard in zip(files, shards, strict=True):
        header, position = {}, 0
        for outline in shard:
            header[outline.name] = {
                "dtype": outline.dtype,
                "shape": list(outline.shape),
                "data_offsets": [position, position + outline.nbytes],
            }
            position += outline.nbytes
        with file.open("wb") as stream:
            stream.write(encode_header(header))
            for outline in shard:
                _write_tensor(stream, outline, blocks)
    if len(files) > 1:
        weight_map = {outline.name: file.name for file, shard in zip(files, shards, strict=True) for outline in shard}
        files.append(_write_index(folder, stem, weight_map, sum(outline.nbytes for outline in outlines)))
    return files


def _write_tensor(stream: BinaryIO, outline: Outline, blocks: Iterator[Tensor]) -> None:
    left = outline.nbytes
    while left > 0:
        data = _as_bytes(next(blocks))
        stream.write(data.numpy().data)
        left -= data.numel()
    if left:
        raise AssertionError(f"{outline} came with {-left} bytes too many")


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)


def _shard_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def _write_index(folder: Path, stem: str, weight_map: Mapping[str, str], total: int) -> Path:
    index = folder / f"{stem}.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2, sort_keys=True))
    return index


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
