"""Which part of a tensor: one slice for each dimension, start and stop set, as safetensors and loaders of shards ask for it."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Index = tuple[slice, ...]  # one slice a dimension, start and stop set, step 1


def full_index(shape: tuple[int, ...] | list[int]) -> Index:
    """The index that takes all of a tensor of this shape."""
    return tuple(slice(0, size) for size in shape)


def normalize_index(index: Any, shape: tuple[int, ...]) -> Index:
    """Turn what a loader may write between brackets (`...`, a slice, a tuple of slices) into one slice a dimension.

    Raises:
        `TypeError`: an integer, a mask, or a step: no loader asks for them.
    """
    entries = list(index) if isinstance(index, tuple) else [index]
    if any(entry is Ellipsis for entry in entries):
        position = next(i for i, entry in enumerate(entries) if entry is Ellipsis)
        entries[position : position + 1] = [slice(None)] * (len(shape) - len(entries) + 1)
    entries += [slice(None)] * (len(shape) - len(entries))
    result = []
    for entry, size in zip(entries, shape, strict=True):
        if not isinstance(entry, slice):
            raise TypeError(f"Index {index!r}: only slices are supported.")
        start, stop, step = entry.indices(size)
        if step != 1:
            raise TypeError(f"Index {index!r}: only steps of 1 are supported.")
        result.append(slice(start, max(start, stop)))
    return tuple(result)


def at_least_1d(shape: tuple[int, ...], index: Index) -> tuple[tuple[int, ...], Index]:
    """Return shape and index as they are, or in the place of a scalar's those of a tensor with one element."""
    if shape:
        return shape, index
    return (1,), (slice(0, 1),)


def index_shape(index: Index) -> tuple[int, ...]:
    """The shape that an index takes out."""
    return tuple(entry.stop - entry.start for entry in index)


def row_blocks(index: Index, elements: int) -> Iterator[Index]:
    """Split an index into blocks of whole rows (of the first dimension) of about so many elements each."""
    if not index:
        yield index
        return
    row = max(1, count_elements(index_shape(index[1:])))
    step = max(1, elements // row)
    for start in range(index[0].start, index[0].stop, step):
        yield (slice(start, min(start + step, index[0].stop)), *index[1:])


def count_elements(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def rows_and_columns(index: Index, shape: tuple[int, ...]) -> tuple[Tensor, slice]:
    """Row numbers and column range of a part, with all dimensions but the last flattened into rows."""
    if not shape:
        return torch.zeros(1, dtype=torch.int64), slice(0, 1)
    rows = torch.zeros(1, dtype=torch.int64)
    for part, size in zip(index[:-1], shape[:-1], strict=True):
        rows = (rows[:, None] * size + torch.arange(part.start, part.stop)[None, :]).reshape(-1)
    return rows, index[-1]


def as_rows(tensor: Tensor) -> Tensor:
    """All dimensions but the last flattened into rows: (R, C); a tensor with no elements keeps its columns."""
    columns = tensor.shape[-1]
    return tensor.reshape(count_elements(tuple(tensor.shape[:-1])), columns)
