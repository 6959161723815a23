"""The interface of a codec: how the delta of one tensor becomes named parts, and how any slice of it comes back."""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout
from dem_hub.numerics.slices import Index


class Codec(Protocol):
    """What every codec does. Its fields are its options; `name` is its entry in `CODECS`."""

    name: ClassVar[str]

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Named parts of one tensor's delta (float32, on any device); `base` and `finetuned` are in their own dtypes."""

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """The parts of a tensor of this shape."""

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """The slice `index` of the delta of a tensor of this shape, on the device that the parts and the base's tensor are read to."""
