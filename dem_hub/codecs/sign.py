"""`sign`: one bit an element, its sign, and one unbiased scale a row; or, in less, the place and the sign of the largest of each `group`.

    decoded = sign(delta) * scale where kept        scale = sum(delta^2) / sum(|delta|, kept) of the row

With this scale <decoded, delta> = |delta|^2. The least-squares scale, the mean of |delta| (BitDelta; Liu et al., 2024), has the smaller
error and makes every vector a third too short. Zeros, which have no sign, get alternating ones. Below one bit an element the largest of
each group of neighbours, its place in log2(group) bits, leaves two thirds of the noise of as many bytes of signs drawn at random.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout, Part
from dem_hub.codecs.packing import pack, packed_size, unpack
from dem_hub.codecs.sampling import scatter
from dem_hub.errors import CodecError
from dem_hub.numerics.slices import Index, as_rows, full_index, index_shape, row_blocks, rows_and_columns

MOST = 1 << 12  # columns of a group
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Sign:
    """Keep the sign of every element, or of the largest of every `group` neighbours in a row."""

    name: ClassVar[str] = "sign"
    group: int = field(
        default=1, metadata={"help": "keep the sign of the largest of so many neighbours; 1 keeps every sign"}
    )

    def __post_init__(self) -> None:
        """Refuse groups out of range."""
        check_group(self.name, self.group)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """`sign` (..., ceil(groups * bits / 8)) uint8, and `scale` (...,) bfloat16."""
        *lead, columns = shape or (1,)
        packed = packed_size(-(-columns // self.group) * code_bits(self.group), 1)
        return {"sign": Part(("U8",), (*lead, packed)), "scale": Part(("BF16",), tuple(lead))}

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Codes and scales, in blocks of rows."""
        shape = tuple(delta.shape) or (1,)
        delta = delta.reshape(shape)
        codes, scales = [], []
        for block in row_blocks(full_index(shape), _BLOCK):
            values = delta[block].reshape(-1, shape[-1])
            peak = values.abs().amax(dim=1, keepdim=True) if shape[-1] else values.new_zeros(len(values), 1)
            units = values / torch.where(peak > 0, peak, 1)
            columns = _largest(units, self.group)
            kept = units if self.group == 1 else units.gather(1, columns)
            rows, _ = rows_and_columns(block, shape)
            odd = (rows.to(values.device)[:, None] & 1).bool() ^ (columns & 1).bool()
            positive = (kept > 0) | ((kept == 0) & odd)
            squares, sizes = units.square().sum(dim=1), kept.abs().sum(dim=1)
            scales.append((peak.squeeze(1) * torch.where(sizes > 0, squares / sizes, 0)).bfloat16())
            codes.append(
                pack(positive, 1)
                if self.group == 1
                else _pack(2 * (columns % self.group) + positive, code_bits(self.group))
            )
        lead = shape[:-1]
        return {"sign": torch.cat(codes).reshape(*lead, -1), "scale": torch.cat(scales).reshape(lead)}

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """The slice `index`: signs times scales, 0 where nothing was kept."""
        index = index if shape else (slice(0, 1),)
        *lead, columns = index
        first = columns.start // self.group
        groups = slice(first, -(-columns.stop // self.group) if columns.stop > columns.start else first)
        codes = self._codes(parts, tuple(lead), groups)
        scale = parts["scale"][tuple(lead) if lead else ...].float().reshape(-1, 1)
        dense = ((codes & 1).float() * 2 - 1) * scale
        if self.group > 1:
            starts = torch.arange(groups.start, groups.stop, device=codes.device) * self.group - columns.start
            dense = scatter(dense, starts + (codes >> 1), columns.stop - columns.start)
        return Delta(dense=dense.reshape(index_shape(index) if shape else ()))

    def _codes(self, parts: Mapping[str, LazyTensor], lead: Index, groups: slice) -> Tensor:
        """2 * place + (1 if positive) of a range of groups of some rows."""
        bits = code_bits(self.group)
        first, last = groups.start * bits, groups.stop * bits
        packed = parts["sign"][(*lead, slice(first // 8, packed_size(last, 1)))]
        found = unpack(as_rows(packed), 1)[:, first % 8 :][:, : last - first]
        if bits == 1:
            return found
        places = 1 << torch.arange(bits, device=found.device)
        numbers: Tensor = (found.unflatten(1, (-1, bits)) * places).sum(dim=2)
        return numbers


def code_bits(group: int) -> int:
    """Bits that a group takes: one for the sign, the others for the place."""
    return 1 + (group - 1).bit_length()


@cache
def noise(group: int) -> float:
    """|decoded - delta|^2 / |delta|^2 where delta is Gaussian: group / E[largest |z| of the group]^2 - 1.

    Example:

    ```python
    >>> from dem_hub.codecs.sign import noise
    >>> [round(noise(group), 2) for group in (1, 4, 8, 16)]
    [0.57, 0.86, 1.52, 2.71]

    ```
    """
    places = torch.linspace(0, 12, 12_001, dtype=torch.float64)
    below = torch.special.erf(places / math.sqrt(2))  # P(|z| < place)
    return group / float(torch.trapezoid(1 - below**group, places)) ** 2 - 1


def check_group(codec: str, group: int) -> None:
    """Refuse a group that is none.

    Raises:
        `CodecError`: no whole number from 1 to 4,096.
    """
    if type(group) is not int or not 1 <= group <= MOST:
        raise CodecError(f"codec '{codec}' has group={group!r}; it must be a whole number from 1 to {MOST}.")


def _largest(values: Tensor, group: int) -> Tensor:
    """The column of the largest magnitude of each group: (R or 1, groups) int64. Of two that are equal but for their last bits, the later."""
    columns = values.shape[1]
    if group == 1:
        return torch.arange(columns, device=values.device)[None]
    groups = -(-columns // group)
    # A float's bits are in the order of its magnitude; the last of them make room for the place, which the largest then brings along.
    bits = (group - 1).bit_length()
    order = functional.pad(values.abs().view(torch.int32), (0, groups * group - columns), value=-1).unflatten(
        1, (groups, group)
    )
    places = torch.arange(group, dtype=torch.int32, device=values.device)
    largest = torch.where(order < 0, -1, (order >> bits << bits) | places).amax(dim=2)
    return (largest & ((1 << bits) - 1)) + group * torch.arange(groups, device=values.device)


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Pack (R, G) codes of any number of bits, the lowest first."""
    return pack((codes.unsqueeze(-1) >> torch.arange(bits, device=codes.device) & 1).flatten(1), 1)
