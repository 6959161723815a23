"""`full` and `replace`: the fine-tuned tensor itself. No user chooses them; the kind of the tensor decides.

`full` is what PEFT keeps for `modules_to_save` and trained biases. The base is subtracted when it is decoded, so that
it is a delta like any other, scaled by its coefficient. `replace` is for buffers and integers, and never scaled: half
of a running mean or of a position index means nothing. Two vectors that disagree on such a tensor are refused when
they are merged.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from dem_hub.checkpoints.lazy import DTYPES, LazyTensor
from dem_hub.codecs.codec import Codec
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import FLOATS, Layout, Part
from dem_hub.numerics.precision import widest
from dem_hub.numerics.slices import Index


@dataclass(frozen=True)
class Full(Codec):
    """Store the fine-tuned tensor in its own dtype, as a delta."""

    name: ClassVar[str] = "full"

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Return the part `full`."""
        return {"full": finetuned}

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return the layout: `full`, of the tensor's shape."""
        return {"full": Part(FLOATS, shape)}

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """Return the slice `index` of full - base, in the widest dtype of its device."""
        return _subtract_base(parts["full"], index, base)


@dataclass(frozen=True)
class Replace(Codec):
    """Store the fine-tuned tensor; merging puts it in the place of the base's."""

    name: ClassVar[str] = "replace"

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Return the part `replace`."""
        return {"replace": finetuned}

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return the layout: `replace`, of the tensor's shape and of any dtype."""
        return {"replace": Part(tuple(DTYPES), shape)}

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """Return the slice `index` of replace - base: the norm of a change is measured with it."""
        return _subtract_base(parts["replace"], index, base)

    def replacement(self, parts: Mapping[str, LazyTensor]) -> LazyTensor:
        """Return the stored tensor."""
        return parts["replace"]


def _subtract_base(whole: LazyTensor, index: Index, base: LazyTensor) -> Delta:
    place = index if index else ...
    base_part = base[place]
    dtype = widest(base_part.device)
    return Delta(dense=whole[place].to(dtype) - base_part.to(dtype))
