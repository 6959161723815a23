"""`random`: a random share of the elements in 4 or 8 bits, each standing for as many as were dropped around it; no index is stored.

DARE (Yu et al., 2024) as a format: drop at random, rescale by 1 / density. Unbiased, with a noise of sqrt(1 / density - 1) times the
delta, which is harmless while it is small against the weights and only then.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout
from dem_hub.codecs.packing import dequantize, quantize, quantized_parts
from dem_hub.codecs.sampling import count_kept, draw, scatter
from dem_hub.errors import CodecError
from dem_hub.numerics.slices import Index, as_rows, full_index, index_shape, row_blocks

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Random:
    """Keep a share `density` (0 to 1) of the elements in `bits` (4 or 8); `seed` decides which."""

    name: ClassVar[str] = "random"
    density: float = field(default=0.1, metadata={"help": "share of the elements to keep, above 0 and at most 1"})
    bits: int = field(default=4, metadata={"help": "bits of each element that is kept: 4 or 8"})
    seed: int = field(default=0, metadata={"help": "seed of the random choice of elements"})

    def __post_init__(self) -> None:
        """Refuse shares and bits out of range."""
        if not 0 < self.density <= 1:
            raise CodecError(f"codec 'random' has density={self.density!r}; it must be above 0 and at most 1.")
        if type(self.seed) is not int:
            raise CodecError(f"codec 'random' has seed={self.seed!r}; it must be a whole number.")
        if type(self.bits) is not int or self.bits not in (4, 8):
            raise CodecError(
                f"codec 'random' has bits={self.bits!r}; choose 4 or 8, or the codec 'sign' for 1 and less."
            )

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """`values` (..., ceil(kept * bits / 8)) uint8, and `scale` (..., ceil(kept / 64)) bfloat16."""
        *lead, columns = shape or (1,)
        values, scale = quantized_parts(tuple(lead), count_kept(columns, self.density), self.bits)
        return {"values": values, "scale": scale}

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Kept elements and scales, in blocks of rows."""
        shape = tuple(delta.shape) or (1,)
        delta = delta.reshape(shape)
        kept = count_kept(shape[-1], self.density)
        codes: list[Tensor] = []
        scales: list[Tensor] = []
        for block in row_blocks(full_index(shape), _BLOCK):
            values = as_rows(delta[block])
            if kept < shape[-1]:
                values = values.gather(1, draw(block, shape, kept, self.seed, delta.device).positions)
            for part, found in zip((codes, scales), quantize(values, self.bits), strict=True):
                part.append(found)
        lead = shape[:-1]
        return {"values": torch.cat(codes).reshape(*lead, -1), "scale": torch.cat(scales).reshape(*lead, -1)}

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """The slice `index`: what was kept of it, times what each element stands for."""
        whole, index = shape or (1,), index if shape else (slice(0, 1),)
        *lead, columns = index
        kept = count_kept(whole[-1], self.density)
        sample = draw(index, whole, kept, self.seed, parts["scale"][(*lead, slice(0, 0))].device)
        values = as_rows(dequantize(parts["values"], parts["scale"], tuple(lead), sample.groups, self.bits))
        dense = scatter(values * sample.sizes, sample.positions, columns.stop - columns.start)
        return Delta(dense=dense.reshape(index_shape(index) if shape else ()))
