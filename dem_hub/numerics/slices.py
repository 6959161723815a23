"""Parts of tensors: one slice for each dimension, with start and stop, as safetensors and loaders of shards ask for
them.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

Index = tuple[slice, ...]  # one slice a dimension, start and stop set, step 1


def full_index(shape: tuple[int, ...] | list[int]) -> Index:
    """Return the index that takes all of a tensor of this shape."""
    return tuple(slice(0, size) for size in shape)


def normalize_index(index: Any, shape: tuple[int, ...]) -> Index:
    """Return what a loader writes between brackets (`...`, a slice, a tuple of slices) as one slice a dimension.

    Raises:
        `TypeError`: the index has an integer, a mask or a step. No loader asks for them.
    """
    entries = list(index) if isinstance(index, tuple) else [index]
    for position, entry in enumerate(entries):
        if entry is Ellipsis:
            entries[position : position + 1] = [slice(None)] * (len(shape) - len(entries) + 1)
            break
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
    """Return the shape of the part that an index takes."""
    return tuple(entry.stop - entry.start for entry in index)


def row_blocks(index: Index, elements: int) -> Iterator[Index]:
    """Split an index along the first dimension, into blocks of about so many elements, and at least one row."""
    if not index:
        yield index
        return
    rows, *others = index
    row_size = max(1, math.prod(index_shape(tuple(others))))
    step = max(1, elements // row_size)
    for start in range(rows.start, rows.stop, step):
        yield (slice(start, min(start + step, rows.stop)), *others)


def rows_and_columns(index: Index, shape: tuple[int, ...]) -> tuple[Tensor, slice]:
    """Return the row numbers (rows,) int64 and the range of columns of a part, with all dimensions but the last
    flattened into rows.
    """
    if not shape:
        return torch.zeros(1, dtype=torch.int64, device="cpu"), slice(0, 1)
    rows = torch.zeros(1, dtype=torch.int64, device="cpu")
    for part, size in zip(index[:-1], shape[:-1], strict=True):
        rows = (rows[:, None] * size + torch.arange(part.start, part.stop, device="cpu")[None, :]).reshape(-1)
    return rows, index[-1]


def as_rows(tensor: Tensor) -> Tensor:
    """Return a tensor with all dimensions but the last flattened into rows: (R, C).

    A tensor with no elements keeps its columns.
    """
    columns = tensor.shape[-1]
    return tensor.reshape(math.prod(tensor.shape[:-1]), columns)
