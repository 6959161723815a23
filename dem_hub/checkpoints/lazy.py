"""Lazy tensors: shape and dtype are known from a file's header, and only the slice that is asked for is read.

The protocol is that of safetensors' own slices (`get_shape`, `get_dtype`, brackets), so what a file gives is a lazy
tensor as it is. A [`View`] shows another lazy tensor differently (transposed, some of its rows or columns, on a
device). Views can be nested, and a read takes from the file no more than it needs. An index is `...`, or one slice
with step 1 for each dimension.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from dem_hub.numerics.precision import to_device
from dem_hub.numerics.slices import Index, normalize_index

# The dtypes of safetensors, by the codes in its headers, as far as torch can read and the merge can write them.
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
CODES = {dtype: code for code, dtype in DTYPES.items()}


class LazyTensor(Protocol):
    """A tensor that can be sliced without being read whole: a safetensors slice, or an object with the same methods."""

    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...
    def __getitem__(self, index: Any, /) -> Tensor: ...


@dataclass(frozen=True)
class InMemory:
    """A tensor in memory with the methods of a lazy one."""

    tensor: Tensor

    def get_shape(self) -> list[int]:
        """Return the tensor's shape."""
        return list(self.tensor.shape)

    def get_dtype(self) -> str:
        """Return the tensor's dtype as a safetensors code."""
        return CODES[self.tensor.dtype]

    def __getitem__(self, index: Any) -> Tensor:
        """Return a slice."""
        return self.tensor[index]


@dataclass(frozen=True)
class Computed:
    """A tensor that is in no file: a slice is computed when it is asked for, by `part`."""

    shape: tuple[int, ...]
    dtype: str
    part: Callable[[Index], Tensor]

    def get_shape(self) -> list[int]:
        return list(self.shape)

    def get_dtype(self) -> str:
        return self.dtype

    def __getitem__(self, index: Any) -> Tensor:
        return self.part(normalize_index(index, self.shape))


@dataclass(frozen=True)
class View:
    """Base class of lazy tensors that show another one; as it stands, it shows the tensor unchanged."""

    tensor: LazyTensor

    def get_shape(self) -> list[int]:
        """Return the shape of the view."""
        return self.tensor.get_shape()

    def get_dtype(self) -> str:
        """Return the dtype on disk as a safetensors code; no view changes it."""
        return self.tensor.get_dtype()

    def __getitem__(self, index: Any) -> Tensor:
        """Read a slice of the view."""
        return self.tensor[index]


@dataclass(frozen=True)
class OnDevice(View):
    """A view whose slices are moved to a device, in float32 if they are float64 and the device has none.

    Codecs store values packed. They are moved as they are on disk, and unpacked on the device, so that fewer bytes
    cross the bus.
    """

    device: torch.device

    def __getitem__(self, index: Any) -> Tensor:
        """Read a slice and move it to the device."""
        return to_device(self.tensor[index], self.device)


@dataclass(frozen=True)
class Transposed(View):
    """The transpose of a matrix on disk: GPT-2's Conv1D and embeddings hold the transpose of a LoRA's B @ A."""

    def get_shape(self) -> list[int]:
        """Return the shape of the transpose."""
        rows, columns = self.tensor.get_shape()
        return [columns, rows]

    def __getitem__(self, index: Any) -> Tensor:
        """Read a slice of the transpose."""
        rows, columns = normalize_index(index, tuple(self.get_shape()))
        return self.tensor[columns, rows].T


@dataclass(frozen=True)
class Rows(View):
    """The rows `start` to `stop` of a tensor of any number of dimensions.

    Example:

    ```python
    >>> import torch
    >>> from dem_hub.checkpoints.lazy import InMemory, Rows
    >>> rows = Rows(InMemory(torch.arange(8).reshape(4, 2)), 1, 3)
    >>> rows.get_shape(), rows[...].tolist(), rows[1:2, 0:1].tolist()
    ([2, 2], [[2, 3], [4, 5]], [[4]])

    ```
    """

    start: int
    stop: int

    def get_shape(self) -> list[int]:
        """Return the shape of the view."""
        return [self.stop - self.start, *self.tensor.get_shape()[1:]]

    def __getitem__(self, index: Any) -> Tensor:
        """Read a slice of these rows."""
        rows, *others = normalize_index(index, tuple(self.get_shape()))
        return self.tensor[(slice(self.start + rows.start, self.start + rows.stop), *others)]


@dataclass(frozen=True)
class Columns(View):
    """The columns `start` to `stop` of a matrix.

    Example:

    ```python
    >>> import torch
    >>> from dem_hub.checkpoints.lazy import Columns, InMemory
    >>> columns = Columns(InMemory(torch.arange(8).reshape(2, 4)), 1, 3)
    >>> columns.get_shape(), columns[...].tolist(), columns[1:2, 1:2].tolist()
    ([2, 2], [[1, 2], [5, 6]], [[6]])

    ```
    """

    start: int
    stop: int

    def get_shape(self) -> list[int]:
        """Return the shape of the view."""
        return [self.tensor.get_shape()[0], self.stop - self.start]

    def __getitem__(self, index: Any) -> Tensor:
        """Read a slice of these columns."""
        rows, columns = normalize_index(index, tuple(self.get_shape()))
        return self.tensor[rows, self.start + columns.start : self.start + columns.stop]


@dataclass(frozen=True)
class EveryNthColumn(View):
    """The columns `first`, `first + step`, `first + 2 * step`, ... of a matrix.

    A slice of a safetensors file has no step, so whole rows are read and the columns are taken from them.

    Example:

    ```python
    >>> import torch
    >>> from dem_hub.checkpoints.lazy import EveryNthColumn, InMemory
    >>> EveryNthColumn(InMemory(torch.arange(6).reshape(1, 6)), 1, 3)[...].tolist()
    [[1, 4]]

    ```
    """

    first: int
    step: int

    def get_shape(self) -> list[int]:
        """Return the shape of the view."""
        rows, columns = self.tensor.get_shape()
        return [rows, len(range(self.first, columns, self.step))]

    def __getitem__(self, index: Any) -> Tensor:
        """Read a slice of these columns."""
        rows, columns = normalize_index(index, tuple(self.get_shape()))
        return self.tensor[rows, :][:, self.first :: self.step][:, columns]
