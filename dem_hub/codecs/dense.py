"""`dense`: the whole delta, in float32 or bfloat16.

In float32, base + delta is the fine-tune again, bit for bit between bf16 or fp16 checkpoints. A few differences have
more bits than the 24 of float32 (a weight that nearly vanished: 0.02 to 1e-9). An ordinary delta loses these bits;
here `index` and `remainder` keep them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.codec import ENCODE_BLOCK, Codec
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout, Part, code_of
from dem_hub.errors import CodecError
from dem_hub.numerics.slices import Index, at_least_1d, full_index, index_shape, row_blocks

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Dense(Codec):
    """Store all of the delta, in float32 (exact) or bfloat16 (half the size, 0.2 % error an element)."""

    name: ClassVar[str] = "dense"
    dtype: str = field(default="float32", metadata={"help": "float32 (exact) or bfloat16 (half the size)"})

    def __post_init__(self) -> None:
        """Refuse other dtypes."""
        if self.dtype not in DTYPES:
            raise CodecError(f"codec 'dense' has no dtype '{self.dtype}'; choose {' or '.join(DTYPES)}.")

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return `True`: a tensor of any shape."""
        return True

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Return `dense`, and where needed `index` (int64, into the flat tensor) and `remainder` (float32)."""
        parts = {"dense": delta.to(DTYPES[self.dtype])}
        if self.dtype == "float32":
            parts |= _remainder(delta, base, finetuned)
        return parts

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return the layout: `dense` of the tensor's shape.

        In float32 `index` and `remainder` may follow, one entry an element.
        """
        layout = {"dense": Part((code_of(self.dtype),), shape)}
        if self.dtype == "float32":
            layout["index"] = Part(("I64",), ("some",), optional=True)
            layout["remainder"] = Part(("F32",), ("some",), optional=True)
        return layout

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """Return the slice `index` of the delta. The base is not read."""
        dense = parts["dense"][index if index else ...]
        rest = None
        if "index" in parts:
            zeros = torch.zeros_like(dense, memory_format=torch.contiguous_format)
            rest = _slice_remainder(parts, shape, index, zeros)
        return Delta(dense=dense, rest=rest)


def _remainder(delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
    """Return `index` and `remainder` of the elements whose base + delta is not the fine-tune; nothing if there are
    none.

    The remainder is the bits of finetuned - base that float32 could not hold.
    """
    places = []
    values = []
    row_size = delta[0].numel() if delta.ndim else 1
    for block in row_blocks(full_index(delta.shape), ENCODE_BLOCK):
        block_base = base[block]
        block_finetuned = finetuned[block]
        block_delta = delta[block]
        is_off = block_base.float() + block_delta != block_finetuned.float()
        flat = is_off.reshape(-1).nonzero()[:, 0]
        if len(flat):
            first = block[0].start * row_size if block else 0
            reached = block_base.reshape(-1)[flat].double() + block_delta.reshape(-1)[flat].double()
            places.append(flat.cpu() + first)
            values.append((block_finetuned.reshape(-1)[flat].double() - reached).float().cpu())
    if not places:
        return {}
    return {"index": torch.cat(places), "remainder": torch.cat(values)}


def _slice_remainder(parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, rest: Tensor) -> Tensor:
    """Write the remainders that lie in the slice `index` into `rest`, which is that slice filled with zeros."""
    shape, index = at_least_1d(shape, index)
    if rest.numel() == 0:
        return rest
    if index[1:] == full_index(shape[1:]):
        # Whole rows lie side by side, so that their places need not be taken apart. The remainder is what
        # `unravel_index` takes below.
        first = index[0].start * math.prod(shape[1:])
        flat = parts["index"][...] % math.prod(shape) - first
        is_inside = (flat >= 0) & (flat < rest.numel())
        rest.view(-1)[flat[is_inside]] = parts["remainder"][...][is_inside]
        return rest
    places = torch.stack(torch.unravel_index(parts["index"][...], shape), dim=1)  # (elements, dimensions)
    starts = places.new_tensor([part.start for part in index])
    stops = places.new_tensor([part.stop for part in index])
    inside = ((places >= starts) & (places < stops)).all(dim=1)
    local = tuple((places[inside] - starts).unbind(dim=1))
    rest.view(index_shape(index))[local] = parts["remainder"][...][inside]
    return rest
