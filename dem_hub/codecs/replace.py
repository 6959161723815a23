"""`replace`: a tensor that takes the place of the base's, never scaled: buffers and integers.

Half of a running mean or of a position index means nothing; two vectors that disagree on one are refused when they are merged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dem_hub.checkpoints.lazy import DTYPES, LazyTensor
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout, Part
from dem_hub.numerics.slices import Index


@dataclass(frozen=True)
class Replace:
    """Store the fine-tuned tensor; merging takes it as it is."""

    name: ClassVar[str] = "replace"

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Parts of one tensor: `replace`."""
        return {"replace": finetuned}

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """`replace` of the tensor's shape."""
        return {"replace": Part(tuple(DTYPES), shape)}

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """The slice `index` of what separates the replacement from the base."""
        return Delta(dense=parts["replace"][index if index else ...].double() - base[index if index else ...].double())
