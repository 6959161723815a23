"""`sign`: one bit an element, its sign, and one unbiased scale a row; of a share of the elements only where `density` is below 1.

    decoded = sign(delta) * scale * size        scale = sum(delta^2) / sum(|delta|) of the row

`size` is how many elements a kept one stands for. With this scale <decoded, delta> = |delta|^2. The least-squares scale, the mean of
|delta| (BitDelta; Liu et al., 2024), has the smaller error and makes every vector a third too short. Zeros, which have no sign, get
alternating ones. Below one bit an element it is better to keep fewer signs than fewer values of more bits: at equal bytes the noise
of 4-bit values is three times that of signs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dem_hub.checkpoint import LazyTensor
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout, Part
from dem_hub.codecs.packing import pack, packed_size, unbiased_scale, unpack
from dem_hub.codecs.sampling import count_kept, draw, scatter
from dem_hub.errors import CodecError
from dem_hub.index import Index, as_rows, full_index, index_shape, row_blocks, rows_and_columns

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Sign:
    """Keep the signs of a share `density` (0 to 1) of the elements; `seed` decides which."""

    name: ClassVar[str] = "sign"
    density: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse shares out of range."""
        check_density(self.name, self.density)
        check_seed(self.name, self.seed)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """`sign` (..., ceil(kept / 8)) uint8, and `scale` (...,) bfloat16."""
        *lead, columns = shape or (1,)
        kept = count_kept(columns, self.density)
        return {"sign": Part(("U8",), (*lead, packed_size(kept, 1))), "scale": Part(("BF16",), tuple(lead))}

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Signs and scales, in blocks of rows."""
        shape = tuple(delta.shape) or (1,)
        delta = delta.reshape(shape)
        signs, scales = [], []
        for block in row_blocks(full_index(shape), _BLOCK):
            values = delta[block].reshape(-1, shape[-1])
            peak = values.abs().amax(dim=1, keepdim=True) if shape[-1] else values.new_zeros(len(values), 1)
            units = values / torch.where(peak > 0, peak, 1)
            scales.append((peak * unbiased_scale(units, units.sign())).squeeze(1).bfloat16())
            signs.append(pack(self._bits(values, block, shape), 1))
        lead = shape[:-1]
        return {"sign": torch.cat(signs).reshape(*lead, -1), "scale": torch.cat(scales).reshape(lead)}

    def _bits(self, values: Tensor, block: Index, shape: tuple[int, ...]) -> Tensor:
        """1 for positive, 0 for negative, of the kept elements of some rows."""
        rows, _ = rows_and_columns(block, shape)
        odd = (rows.to(values.device)[:, None] + torch.arange(shape[-1], device=values.device)) & 1
        bits = torch.where(values == 0, odd, values > 0)
        kept = count_kept(shape[-1], self.density)
        return bits if kept == shape[-1] else bits.gather(1, draw(block, shape, kept, self.seed, values.device).positions)

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """The slice `index`: signs times scales, 0 where nothing was kept."""
        whole, index = shape or (1,), index if shape else (slice(0, 1),)
        *lead, columns = index
        kept = count_kept(whole[-1], self.density)
        scale = parts["scale"][tuple(lead) if lead else ...].float().reshape(-1, 1)
        if kept == whole[-1]:
            dense = self._signs(parts, tuple(lead), columns) * scale
        else:
            sample = draw(index, whole, kept, self.seed, scale.device)
            values = self._signs(parts, tuple(lead), sample.groups) * scale * sample.sizes
            dense = scatter(values, sample.positions, columns.stop - columns.start)
        return Delta(dense=dense.reshape(index_shape(index) if shape else ()))

    def _signs(self, parts: Mapping[str, LazyTensor], lead: Index, places: slice) -> Tensor:
        """1 or -1 of a range of kept elements of some rows: (R, width) float32."""
        packed = parts["sign"][(*lead, slice(places.start // 8, packed_size(places.stop, 1)))]
        bits = unpack(as_rows(packed), 1)
        start = places.start % 8
        return bits[:, start : start + places.stop - places.start].float() * 2 - 1


def check_density(codec: str, density: float) -> None:
    """Refuse a share that is none.

    Raises:
        `CodecError`: not above 0 and at most 1.
    """
    if not 0 < density <= 1:
        raise CodecError(f"codec '{codec}' has density={density!r}; it must be above 0 and at most 1.")


def check_seed(codec: str, seed: int) -> None:
    """Refuse a seed that is no whole number.

    Raises:
        `CodecError`: as said.
    """
    if type(seed) is not int:
        raise CodecError(f"codec '{codec}' has seed={seed!r}; it must be a whole number.")
