"""`dense`: the whole delta, in float32 or bfloat16.

In float32, base + delta is the fine-tune again, bit for bit between bf16 or fp16 checkpoints. Where a difference has more than
float32's 24 bits (a weight that nearly vanished: 0.02 to 1e-9), the bits that did not fit are kept beside it, as `index` and
`remainder` of those few elements; an ordinary "dense" delta loses them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout, Part, code_of
from dem_hub.errors import CodecError
from dem_hub.numerics.slices import Index, full_index, index_shape, row_blocks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Dense:
    """Store all of the delta; `dtype` is `"float32"` (exact) or `"bfloat16"` (half the size, 0.2 % error an element)."""

    name: ClassVar[str] = "dense"
    dtype: str = field(default="float32", metadata={"help": "float32 (exact) or bfloat16 (half the size)"})

    def __post_init__(self) -> None:
        """Refuse other dtypes."""
        if self.dtype not in DTYPES:
            raise CodecError(f"codec 'dense' has no dtype '{self.dtype}'; choose {' or '.join(DTYPES)}.")

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Parts of one tensor: `dense`, and where needed `index` (int64, flat) and `remainder` (float32)."""
        parts = {"dense": delta.to(DTYPES[self.dtype])}
        if self.dtype == "float32":
            parts |= _remainder(delta, base, finetuned)
        return parts

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """`dense` of the tensor's shape; in float32 maybe `index` and `remainder`, one number for each element that needs it."""
        rest = {
            "index": Part(("I64",), ("some",), optional=True),
            "remainder": Part(("F32",), ("some",), optional=True),
        }
        return {"dense": Part((code_of(self.dtype),), shape)} | (rest if self.dtype == "float32" else {})

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """The slice `index` of the delta; `base` is not needed."""
        dense, rest = parts["dense"][index if index else ...], None
        if "index" in parts:
            rest = torch.zeros_like(dense)
            whole, index = shape or (1,), index if shape else (slice(0, 1),)
            places = torch.stack(torch.unravel_index(parts["index"][...], whole), dim=1)  # (elements, dimensions)
            starts = places.new_tensor([part.start for part in index])
            inside = ((places >= starts) & (places < places.new_tensor([part.stop for part in index]))).all(dim=1)
            local = tuple((places[inside] - starts).unbind(dim=1))
            rest.view(index_shape(index))[local] = parts["remainder"][...][inside]
        return Delta(dense=dense, rest=rest)


def _remainder(delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
    """What is left to add where base + delta is not the fine-tune: the bits of finetuned - base that float32 could not hold."""
    places, values = [], []
    row = delta[0].numel() if delta.ndim else 1
    for block in row_blocks(full_index(delta.shape), _BLOCK):
        low, high, difference = base[block], finetuned[block], delta[block]
        flat = (low.float() + difference != high.float()).reshape(-1).nonzero()[:, 0]
        if len(flat):
            reached = low.reshape(-1)[flat].double() + difference.reshape(-1)[flat].double()
            places.append(flat.cpu() + (block[0].start * row if block else 0))
            values.append((high.reshape(-1)[flat].double() - reached).float().cpu())
    return {"index": torch.cat(places), "remainder": torch.cat(values)} if places else {}
