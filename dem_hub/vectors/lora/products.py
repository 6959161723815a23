"""The products of LoRAs whose delta is no matrix: convolutions, and experts that are one tensor on disk.

Each is a lazy tensor of the delta's shape. A slice of it reads the part of the factors that it needs, and multiplies
them in float64.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.numerics.slices import normalize_index


@dataclass(frozen=True)
class _Product:
    """The base class of both: `left` is B and `right` is A, as PEFT wrote them."""

    left: LazyTensor
    right: LazyTensor

    def get_dtype(self) -> str:
        """Return the dtype of the product as a safetensors code."""
        return "F64"


@dataclass(frozen=True)
class ConvolutionProduct(_Product):
    """The delta (O, I, ...) of a convolution: A is (K, I, ...) with the base's kernel, and B is (O, K, 1, ...).

    PEFT runs both one after the other, and B has a kernel of size 1. So they are one convolution, whose weight is a
    product of matrices.
    """

    def get_shape(self) -> list[int]:
        """Return the shape of the delta."""
        return [self.left.get_shape()[0], *self.right.get_shape()[1:]]

    def __getitem__(self, index: Any) -> Tensor:
        """Return a slice of the delta."""
        outputs, *others = normalize_index(index, tuple(self.get_shape()))
        everything = [slice(0, size) for size in self.left.get_shape()[1:]]
        left = self.left[(outputs, *everything)].double()
        right = self.right[(slice(0, self.right.get_shape()[0]), *others)].double()
        return (left.flatten(1) @ right.flatten(1)).reshape(-1, *right.shape[1:])


@dataclass(frozen=True)
class ExpertsProduct(_Product):
    """The delta (E, R, C) of the matrices of E experts, from A (E * K, C) and B (R, K * E).

    If `is_swapped`, A is (E * K, R) and B is (C, K * E), and the delta of each expert is the transpose of its B @ A.
    """

    experts: int
    is_swapped: bool

    def get_shape(self) -> list[int]:
        """Return the shape of the delta."""
        outputs = self.left.get_shape()[0]
        inputs = self.right.get_shape()[1]
        if self.is_swapped:
            return [self.experts, inputs, outputs]
        return [self.experts, outputs, inputs]

    def __getitem__(self, index: Any) -> Tensor:
        """Return a slice of the delta."""
        experts, outputs, inputs = normalize_index(index, tuple(self.get_shape()))
        if self.is_swapped:
            outputs, inputs = inputs, outputs
        ranks = self.right.get_shape()[0]
        rank = ranks // self.experts
        # B has the columns of all experts in turn, and A their rows one expert after the other.
        left = self.left[outputs, slice(0, ranks)].double().unflatten(1, (rank, self.experts))
        right = self.right[experts.start * rank : experts.stop * rank, inputs].double().unflatten(0, (-1, rank))
        products: Tensor = left[:, :, experts].permute(2, 0, 1) @ right
        if self.is_swapped:
            return products.mT
        return products
