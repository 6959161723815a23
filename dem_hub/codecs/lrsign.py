"""`lrsign`: a low rank in 4 bits, and the signs of what is left of the delta, all of them or the largest of each group.

A full fine-tune is not of low rank. Its leading directions carry much of what it learned, and the long tail carries
the rest. Truncation drops the tail, which is a bias. Signs with an unbiased scale keep the tail in the mean. The
residual is taken after the factors were rounded, so that the signs also make up for that error.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import InMemory, LazyTensor
from dem_hub.codecs.codec import Codec
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.factors import decode_factors, encode_factors, factor_layout
from dem_hub.codecs.layout import Layout
from dem_hub.codecs.sign import Sign, check_group
from dem_hub.errors import CodecError
from dem_hub.numerics.slices import Index, full_index
from dem_hub.numerics.svd import balanced_factors

_FACTOR_DTYPE = "int4"


@dataclass(frozen=True)
class LRSign(Codec):
    """Keep `rank` directions in 4 bits, and what `sign` keeps of the rest.

    A tensor that is no matrix has signs alone.
    """

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
        """Return the layout: the parts of `sign`, and for a matrix also its factors in 4 bits."""
        signs = self._signs.layout(shape)
        if len(shape) != 2:
            return signs
        rows, columns = shape
        factors = factor_layout(rows, columns, min(self.rank, rows, columns), _FACTOR_DTYPE)
        return {**factors, **signs}

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Return the factors of a matrix, and the signs of what they leave."""
        if delta.ndim != 2:
            return self._signs.encode(delta, base, finetuned)
        return self.encode_with(balanced_factors(delta, rank=min(self.rank, *delta.shape)), delta)

    def encode_with(self, factors: tuple[Tensor, Tensor], delta: Tensor) -> dict[str, Tensor]:
        """Return the parts of a matrix whose factors, left (R, K) and right (K, C), are known already; see
        [`encode`].
        """
        quantized = encode_factors(*factors, _FACTOR_DTYPE)
        stored = {name: InMemory(part) for name, part in quantized.items()}
        rows, columns = full_index(delta.shape)
        left, right = decode_factors(stored, rows, columns, _FACTOR_DTYPE)
        residual = torch.addmm(delta, left, right, alpha=-1)
        return {**quantized, **self._signs.encode(residual, delta, delta)}

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """Return the slice `index`: factors, and signs as the dense part."""
        signs = self._signs.decode(parts, shape, index, base)
        if len(shape) != 2:
            return signs
        rows, columns = index
        left, right = decode_factors(parts, rows, columns, _FACTOR_DTYPE)
        return Delta(left=left, right=right, dense=signs.dense)

    @property
    def _signs(self) -> Sign:
        return Sign(self.group)
