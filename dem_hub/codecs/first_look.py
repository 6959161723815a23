"""A first look at the tensors of a vector before any is encoded, from which a budget is divided among them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Glance:
    """The size of one tensor's change, next to the size of its weights.

    `rms` and `base_rms` are root mean squares of the elements of the delta and of the base. `is_vocabulary` says that
    the rows belong to tokens, as those of embeddings do.
    """

    shape: tuple[int, ...]
    rms: float
    base_rms: float
    is_vocabulary: bool

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def weight(self) -> float:
        """The share of bits that the tensor should have: noise counts against the weights that it is added to."""
        return self.rms / (self.base_rms + self.rms)


@dataclass(frozen=True)
class FirstLook:
    """A glance at every tensor that changed, and the `reserved` bytes of what is stored as it is: new rows and
    replaced tensors.
    """

    glances: Mapping[str, Glance]
    reserved: int = 0
