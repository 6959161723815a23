"""`full`: the fine-tuned tensor itself, of which the base is subtracted when it is decoded.

What PEFT keeps for `modules_to_save` and trained biases. Unlike `replace` it is a delta like any other, scaled by its coefficient.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import FLOATS, Layout, Part
from dem_hub.numerics.slices import Index


@dataclass(frozen=True)
class Full:
    """Store the fine-tuned tensor in its own dtype."""

    name: ClassVar[str] = "full"

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Parts of one tensor: `full`."""
        return {"full": finetuned}

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """`full` of the tensor's shape."""
        return {"full": Part(FLOATS, shape)}

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """The slice `index` of full - base, with the factors of a LoRA on the same tensor where there are any."""
        values = parts["full"][index if index else ...]
        return Delta(dense=values.double() - base[index if index else ...].double())
