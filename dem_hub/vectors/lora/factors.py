"""B and A of a module, and the tensor of the checkpoint that they change."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dem_hub.checkpoints.lazy import LazyTensor, Transposed
from dem_hub.codecs.codec import Codec
from dem_hub.codecs.dense import Dense
from dem_hub.codecs.lowrank import LowRank


@dataclass(frozen=True)
class Factors:
    """B and A of a module, and whether they are an embedding's: there PEFT adds the transpose of B @ A."""

    a: LazyTensor
    b: LazyTensor
    is_embedding: bool

    @property
    def rank(self) -> int:
        """The number of rows of A."""
        return self.a.get_shape()[0]

    @property
    def left_and_right(self) -> tuple[LazyTensor, LazyTensor]:
        """The factors of what PEFT adds to the weight of a linear layer, or to that of an embedding."""
        if self.is_embedding:
            return Transposed(self.a), Transposed(self.b)
        return self.b, self.a

    def is_same(self, other: "Factors") -> bool:
        """Check whether the factors of two modules are the same change of a weight."""
        pairs = zip(self.left_and_right, other.left_and_right, strict=True)
        return all(_is_equal(mine, theirs) for mine, theirs in pairs)


@dataclass(frozen=True)
class Target:
    """A tensor of the checkpoint that a LoRA changes, with the shape and the parts of the change.

    `name` is what the patterns of the config are matched with: the module, or the parameter where the LoRA is on a
    parameter. `rank` is that of one matrix.
    """

    key: str
    name: str
    rank: int
    shape: tuple[int, ...]
    codec: Codec
    parts: Mapping[str, LazyTensor]

    @classmethod
    def matrix(cls, key: str, name: str, left: LazyTensor, right: LazyTensor) -> "Target":
        """Return the change left @ right of a matrix."""
        rows, rank = left.get_shape()
        shape = (rows, right.get_shape()[1])
        return cls(key, name, rank, shape, LowRank(), {"left": left, "right": right})

    @classmethod
    def product(cls, key: str, name: str, rank: int, product: LazyTensor) -> "Target":
        """Return the change of a tensor that is no matrix."""
        return cls(key, name, rank, tuple(product.get_shape()), Dense(), {"dense": product})


def _is_equal(first: LazyTensor, second: LazyTensor) -> bool:
    """Check whether two lazy tensors have the same values."""
    return first.get_shape() == second.get_shape() and torch.equal(first[...], second[...])
