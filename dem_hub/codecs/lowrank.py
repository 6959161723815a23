"""`lowrank`: a matrix's leading singular directions, which PEFT reads as a LoRA.

LoRA training leaves a delta of low rank, and this keeps all of it. Of a full fine-tune it keeps a biased part. It
shrinks the vector (`projection` says by how much), loses little at coefficient 1 and much in a weighted sum; `lrsign`
is for these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.codec import Codec
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.factors import BITS, check_factor_dtype, decode_factors, encode_factors, factor_layout
from dem_hub.codecs.layout import Layout
from dem_hub.errors import CodecError
from dem_hub.numerics.slices import Index
from dem_hub.numerics.svd import DEFAULT_RANK, balanced_factors


@dataclass(frozen=True)
class LowRank(Codec):
    """Keep `rank` singular directions, or as many as hold the share `energy` (0 to 1) of the squared norm.

    `dtype` is that of the factors: `"float32"`, `"bfloat16"` for half the size, or `"int8"` or `"int4"` for a quarter
    or an eighth. Only the first two can be read by PEFT.
    """

    name: ClassVar[str] = "lowrank"
    is_factored: ClassVar[bool] = True
    rank: int | None = field(
        default=None, metadata={"help": "singular directions to keep; 32 unless `energy` is given"}
    )
    energy: float | None = field(
        default=None, metadata={"help": "instead of `rank`: share of the squared norm to keep, 0 to 1"}
    )
    dtype: str = field(default="float32", metadata={"help": "dtype of the factors: float32, bfloat16, int8 or int4"})

    def __post_init__(self) -> None:
        """Refuse both at once, and values out of range."""
        if self.rank is not None and self.energy is not None:
            raise CodecError(
                f"codec 'lowrank' takes rank or energy, not both (rank={self.rank}, energy={self.energy})."
            )
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise CodecError(f"codec 'lowrank' has rank={self.rank!r}; it must be a whole number from 1.")
        if self.energy is not None and not 0 < self.energy <= 1:
            raise CodecError(f"codec 'lowrank' has energy={self.energy!r}; it must be above 0 and at most 1.")
        check_factor_dtype(self.name, self.dtype)
        if self.rank is None and self.energy is None:
            object.__setattr__(self, "rank", DEFAULT_RANK)

    @property
    def fits_peft(self) -> bool:
        """True if the factors are of a dtype that PEFT reads."""
        return self.dtype not in BITS

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether the shape is that of a matrix."""
        return len(shape) == 2

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return the layout of the two factors of a matrix; see [`factor_layout`]."""
        if len(shape) != 2:
            raise CodecError(f"codec 'lowrank' is for matrices, and this tensor is {list(shape)}.")
        rows, columns = shape
        if self.rank is None:
            return factor_layout(rows, columns, "rank", self.dtype)
        return factor_layout(rows, columns, min(self.rank, rows, columns), self.dtype)

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Return `left` (R, K) and `right` (K, C) of one matrix."""
        left, right = balanced_factors(delta, rank=self.rank, energy=self.energy)
        return encode_factors(left, right, self.dtype)

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """Return the slice `index` of the delta: the rows of `left` and the columns of `right` that it needs."""
        rows, columns = index
        left, right = decode_factors(parts, rows, columns, self.dtype)
        return Delta(left=left, right=right)
