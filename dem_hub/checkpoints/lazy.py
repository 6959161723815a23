"""Lazy tensors: shape and dtype are known, and only the slice that is asked for is read."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    pass

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


CODES = {dtype: code for code, dtype in DTYPES.items()}


class LazyTensor(Protocol):
    """What can be sliced without being read whole: a safetensors slice, or something made to look like one."""

    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...
    def __getitem__(self, index: Any, /) -> Tensor: ...


@dataclass(frozen=True)
class InMemory:
    """A tensor that answers like a lazy one."""

    tensor: Tensor

    def get_shape(self) -> list[int]:
        """Its shape."""
        return list(self.tensor.shape)

    def get_dtype(self) -> str:
        """Its dtype, as safetensors writes it."""
        return CODES[self.tensor.dtype]

    def __getitem__(self, index: Any) -> Tensor:
        return self.tensor[index]


@dataclass(frozen=True)
class OnDevice:
    """A lazy tensor whose slices go to a device as they are, packed: there they are unpacked."""

    tensor: LazyTensor
    device: torch.device

    def get_shape(self) -> list[int]:
        """The shape on disk."""
        return self.tensor.get_shape()

    def get_dtype(self) -> str:
        """The dtype on disk."""
        return self.tensor.get_dtype()

    def __getitem__(self, index: Any) -> Tensor:
        """A slice, on the device."""
        return self.tensor[index].to(self.device)


@dataclass(frozen=True)
class Transposed:
    """A matrix on disk, seen transposed: GPT-2's Conv1D and embeddings hold the transpose of a LoRA's B @ A."""

    matrix: LazyTensor

    def get_shape(self) -> list[int]:
        """The shape as seen."""
        rows, columns = self.matrix.get_shape()
        return [columns, rows]

    def get_dtype(self) -> str:
        """The dtype on disk."""
        return self.matrix.get_dtype()

    def __getitem__(self, index: Any) -> Tensor:
        """A slice of the transpose; reads only what it covers."""
        if index is Ellipsis:
            return self.matrix[...].T
        rows, columns = index
        return self.matrix[columns, rows].T


@dataclass(frozen=True)
class RowsFrom:
    """The rows of a tensor from `start` on."""

    tensor: LazyTensor
    start: int

    def get_shape(self) -> list[int]:
        """The shape as seen."""
        rows, *others = self.tensor.get_shape()
        return [rows - self.start, *others]

    def get_dtype(self) -> str:
        """The dtype on disk."""
        return self.tensor.get_dtype()

    def __getitem__(self, index: Any) -> Tensor:
        """All of them, or a slice."""
        if index is Ellipsis:
            return self.tensor[self.start :]
        rows, *others = index
        return self.tensor[(slice(rows.start + self.start, rows.stop + self.start), *others)]
