"""`lrsign`: a low rank in 4 bits, and the signs of what is left of the delta, all of them or the largest of each group.

A full fine-tune is neither: its leading directions carry much of what it learned, the long tail the rest, and truncation, which drops
the tail, is biased. Signs with an unbiased scale keep the tail in the mean. The residual is taken after the factors were rounded, so
that it makes up for their error too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import InMemory, LazyTensor
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.factors import decode_factors, encode_factors, factor_layout
from dem_hub.codecs.layout import Layout
from dem_hub.codecs.sign import Sign, check_group
from dem_hub.errors import CodecError
from dem_hub.numerics.slices import Index, full_index
from dem_hub.numerics.svd import balanced_factors

_BITS = "int4"


@dataclass(frozen=True)
class LRSign:
    """Keep `rank` directions in 4 bits, and of the rest what `sign` keeps; a tensor that is no matrix has signs alone."""

    name: ClassVar[str] = "lrsign"
    rank: int = field(default=32, metadata={"help": "singular directions to keep, in 4 bits"})
    group: int = field(
        default=1, metadata={"help": "keep the sign of the largest of so many neighbours; 1 keeps every sign"}
    )

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        if type(self.rank) is not int or self.rank < 1:
            raise CodecError(f"codec 'lrsign' has rank={self.rank!r}; it must be a whole number from 1.")
        check_group(self.name, self.group)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """The parts of `sign`, and of a matrix its factors in 4 bits."""
        signs = self._signs.layout(shape)
        if len(shape) != 2:
            return signs
        rows, columns = shape
        return {**factor_layout(rows, columns, min(self.rank, rows, columns), _BITS), **signs}

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Factors first, then the signs of what they leave."""
        if delta.ndim != 2:
            return self._signs.encode(delta, base, finetuned)
        return self.encode_with(balanced_factors(delta, rank=min(self.rank, *delta.shape)), delta)

    def encode_with(self, factors: tuple[Tensor, Tensor], delta: Tensor) -> dict[str, Tensor]:
        """The same of a matrix whose factors are known."""
        quantized = encode_factors(*factors, _BITS)
        stored = {name: InMemory(part) for name, part in quantized.items()}
        rows, columns = full_index(delta.shape)
        left, right = decode_factors(stored, rows, columns, _BITS)
        residual = torch.addmm(delta, left, right, alpha=-1)
        return {**quantized, **self._signs.encode(residual, delta, delta)}

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """The slice `index`."""
        signs = self._signs.decode(parts, shape, index, base)
        if len(shape) != 2:
            return signs
        rows, columns = index
        left, right = decode_factors(parts, rows, columns, _BITS)
        return Delta(left=left, right=right, dense=signs.dense)

    @property
    def _signs(self) -> Sign:
        return Sign(self.group)
