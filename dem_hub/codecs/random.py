"""`random`: a random share of the elements in 4 or 8 bits, each of which stands for those that were dropped around it.

This is DARE (Yu et al., 2024) as a format: drop at random, rescale by 1 / density. No index is stored. The decoded
delta is unbiased, with a noise of sqrt(1 / density - 1) times the delta. That noise is harmless as long as it is
small against the weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.codec import ENCODE_BLOCK, Codec
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout
from dem_hub.codecs.packing import dequantize, quantize, quantized_parts
from dem_hub.codecs.sampling import count_kept, draw, scatter, seed_of
from dem_hub.errors import CodecError, ConfigError
from dem_hub.files.shown import shown
from dem_hub.files.strict_json import check_whole
from dem_hub.numerics.slices import Index, as_rows, at_least_1d, full_index, index_shape, row_blocks


@dataclass(frozen=True)
class Random(Codec):
    """Keep a share `density` (0 to 1) of the elements in `bits` (4 or 8); `seed` decides which."""

    name: ClassVar[str] = "random"
    density: float = field(default=0.1, metadata={"help": "share of the elements to keep, above 0 and at most 1"})
    bits: int = field(default=4, metadata={"help": "bits of each element that is kept: 4 or 8"})
    seed: int = field(default=0, metadata={"help": "seed of the random choice of elements"})

    def __post_init__(self) -> None:
        """Refuse shares and bits out of range."""
        if not 0 < self.density <= 1:
            raise CodecError(f"codec 'random' has density={self.density!r}; it must be above 0 and at most 1.")
        try:
            check_whole(self.seed, "seed")
        except ConfigError as error:
            raise CodecError(
                f"codec 'random' has seed={shown(self.seed)}; it must be a whole number of at most 64 bits."
            ) from error
        if type(self.bits) is not int or self.bits not in (4, 8):
            raise CodecError(
                f"codec 'random' has bits={self.bits!r}; choose 4 or 8, or the codec 'sign' for 1 and less."
            )

    def for_tensor(self, key: str, finetuned: Tensor) -> "Random":
        """Return the codec with a seed of this tensor's own: two vectors, or two tensors, must not drop the same
        elements.
        """
        return replace(self, seed=seed_of(key, finetuned, self.seed))

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return the layout: `values` (..., ceil(kept * bits / 8)) uint8, `scale` (..., ceil(kept / 64)) bfloat16."""
        *lead, columns = shape or (1,)
        values, scale = quantized_parts(tuple(lead), count_kept(columns, self.density), self.bits)
        return {"values": values, "scale": scale}

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Return the kept elements and their scales, made in blocks of rows."""
        delta = torch.atleast_1d(delta)
        shape = tuple(delta.shape)
        kept = count_kept(shape[-1], self.density)
        codes = []
        scales = []
        for block in row_blocks(full_index(shape), ENCODE_BLOCK):
            values = as_rows(delta[block])
            if kept < shape[-1]:
                values = values.gather(1, draw(block, shape, kept, self.seed, delta.device).positions)
            block_codes, block_scales = quantize(values, self.bits)
            codes.append(block_codes)
            scales.append(block_scales)
        lead = shape[:-1]
        return {"values": torch.cat(codes).reshape(*lead, -1), "scale": torch.cat(scales).reshape(*lead, -1)}

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """Return the slice `index`: the kept elements, times the number of elements that each stands for."""
        is_scalar = not shape
        shape, index = at_least_1d(shape, index)
        *lead, columns = index
        kept = count_kept(shape[-1], self.density)
        device = parts["scale"][(*lead, slice(0, 0))].device
        sample = draw(index, shape, kept, self.seed, device)
        values = as_rows(dequantize(parts["values"], parts["scale"], tuple(lead), sample.groups, self.bits))
        dense = scatter(values * sample.sizes, sample.positions, columns.stop - columns.start)
        return Delta(dense=dense.reshape(() if is_scalar else index_shape(index)))
