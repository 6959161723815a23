"""The interface of a codec: how the delta of one tensor becomes named parts, and how any slice of it comes back.

Nothing outside of a codec's file asks for its class. What extraction, merging and the writer of a vector must know
about a codec is a method or a class attribute of `Codec`, with a default that suits most codecs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout
from dem_hub.codecs.options import Options
from dem_hub.numerics.slices import Index

# Elements of a large tensor that are encoded at a time, in whole rows. A float32 temporary then takes 16 MiB,
# whatever the tensor's size. Chosen by hand, not measured. The parts do not depend on it, but for `nf4`, whose groups
# of 64 elements must not be cut.
ENCODE_BLOCK = 1 << 22


@dataclass(frozen=True)
class Codec(Options, ABC):
    """The base class of every codec. Three methods must be written; the rest has defaults."""

    # True if `decode` returns nothing but factors, which a merge and an export as LoRA then keep as factors.
    is_factored: ClassVar[bool] = False

    @abstractmethod
    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Return the named parts of one tensor's delta. None of the arguments is changed.

        Args:
            delta (`Tensor`): finetuned - base in float32, on any device.
            base (`Tensor`): the base's tensor, in its own dtype.
            finetuned (`Tensor`): the fine-tune's tensor, in its own dtype and of the same shape.
        """

    @abstractmethod
    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return dtype and shape of each part of a tensor of this shape.

        Budgets, and checks of files, need them before any data.
        """

    @abstractmethod
    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """Return the slice `index` of the delta, and read no more of the parts than it needs.

        Args:
            parts (`Mapping[str, LazyTensor]`): what `encode` returned, unread. The result is on the device that they
                are read to.
            shape (`tuple[int, ...]`): the shape of the whole tensor.
            index (`tuple[slice, ...]`): the wanted part, one slice a dimension.
            base (`LazyTensor`): the base's whole tensor, unread.
        """

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor of this shape is stored with this codec; otherwise it is stored with `dense`.

        By default only tensors of two and more dimensions are. Norms and biases are too small to save on.
        """
        return len(shape) >= 2

    def for_tensor(self, key: str, finetuned: Tensor) -> "Codec":
        """Return the codec for one tensor of a vector, for codecs that differ from tensor to tensor, as in a seed."""
        return self

    @property
    def fits_peft(self) -> bool:
        """True if the parts are the factors `left` and `right` in a dtype that PEFT reads."""
        return False

    def replacement(self, parts: Mapping[str, LazyTensor]) -> LazyTensor | None:
        """Return the tensor that takes the place of the base's, if the parts are no delta that can be scaled."""
        return None
