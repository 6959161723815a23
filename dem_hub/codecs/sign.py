"""`sign`: one bit an element, its sign, with one unbiased scale a row; or fewer bits, with the sign of the largest of
each `group`.

    decoded = sign(delta) * scale where kept        scale = sum(delta^2) / sum(|delta|, kept) of the row

With this scale <decoded, delta> = |delta|^2. The least-squares scale, the mean of |delta| (BitDelta; Liu et al.,
2024), has the smaller error and makes every vector a third too short. Zeros have no sign and get alternating ones.

Below one bit an element, the largest of each group of neighbours is kept: its place in log2(group) bits, and its
sign. That leaves two thirds of the noise of as many bytes of signs of elements drawn at random.
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
from dem_hub.codecs.codec import ENCODE_BLOCK, Codec
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout, Part
from dem_hub.codecs.packing import look_up, pack, packed_size, unpack
from dem_hub.codecs.sampling import scatter
from dem_hub.errors import CodecError
from dem_hub.numerics.slices import Index, as_rows, at_least_1d, full_index, index_shape, row_blocks, rows_and_columns

MAX_GROUP = 1 << 12  # columns; chosen by hand, not measured (`auto` goes up to 128)


@dataclass(frozen=True)
class Sign(Codec):
    """Keep the sign of every element, or of the largest of every `group` neighbours in a row."""

    name: ClassVar[str] = "sign"
    group: int = field(
        default=1, metadata={"help": "keep the sign of the largest of so many neighbours; 1 keeps every sign"}
    )

    def __post_init__(self) -> None:
        """Refuse groups out of range."""
        check_group(self.name, self.group)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return the layout: `sign` (..., ceil(groups * bits / 8)) uint8 and `scale` (...,) bfloat16."""
        *lead, columns = shape or (1,)
        groups = -(-columns // self.group)
        packed = packed_size(groups * code_bits(self.group), 1)
        return {"sign": Part(("U8",), (*lead, packed)), "scale": Part(("BF16",), tuple(lead))}

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Return codes and scales, made in blocks of rows."""
        delta = torch.atleast_1d(delta)
        shape = tuple(delta.shape)
        codes = []
        scales = []
        for block in row_blocks(full_index(shape), ENCODE_BLOCK):
            rows, _ = rows_and_columns(block, shape)
            block_codes, block_scales = self._encode_rows(delta[block].reshape(-1, shape[-1]), rows.to(delta.device))
            codes.append(block_codes)
            scales.append(block_scales)
        lead = shape[:-1]
        return {"sign": torch.cat(codes).reshape(*lead, -1), "scale": torch.cat(scales).reshape(lead)}

    def _encode_rows(self, values: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return packed codes and scales of (R, C) values; `rows` (R,) are their numbers in the tensor."""
        if values.shape[1]:
            peak = values.abs().amax(dim=1, keepdim=True)
        else:
            peak = values.new_zeros(len(values), 1)
        units = values / torch.where(peak > 0, peak, 1)  # -1 to 1, so that no square underflows
        columns = _largest(units, self.group)
        kept = units if self.group == 1 else units.gather(1, columns)
        # A zero is positive in every second place, like the fields of one color on a chess board.
        is_odd = (rows[:, None] & 1).bool() ^ (columns & 1).bool()
        is_positive = (kept > 0) | ((kept == 0) & is_odd)
        squares = units.square().sum(dim=1)
        sizes = kept.abs().sum(dim=1)
        scales = (peak.squeeze(1) * torch.where(sizes > 0, squares / sizes, 0)).bfloat16()
        if self.group == 1:
            return pack(is_positive, 1), scales
        return _pack_codes(2 * (columns % self.group) + is_positive, code_bits(self.group)), scales

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """Return the slice `index`: signs times scales, 0 where nothing was kept."""
        is_scalar = not shape
        _, index = at_least_1d(shape, index)
        lead = index[:-1]
        columns = index[-1]
        first = columns.start // self.group
        last = first
        if columns.stop > columns.start:
            last = -(-columns.stop // self.group)
        bits = code_bits(self.group)
        packed = as_rows(parts["sign"][(*lead, slice(first * bits // 8, packed_size(last * bits, 1)))])
        scale = parts["scale"][lead if lead else ...].float().reshape(-1, 1)
        width = columns.stop - columns.start
        if 8 % bits == 0:
            # Columns of the first byte's groups that are before the slice.
            before = columns.start - first * bits // 8 * (8 // bits) * self.group
            dense = look_up(packed, bits, self._table(packed.device))[:, before : before + width].mul_(scale)
            if self.group > 1:
                dense.add_(0.0)  # no -0, as where values are added to zeros below
        else:
            codes = self._take_apart(packed, slice(first, last))
            starts = torch.arange(first, last, device=codes.device) * self.group - columns.start
            dense = scatter(((codes & 1).float() * 2 - 1) * scale, starts + (codes >> 1), width)
        return Delta(dense=dense.reshape(() if is_scalar else index_shape(index)))

    def _table(self, device: torch.device) -> Tensor:
        """Return the values of a group for each code, 2 * place + (1 if positive): (codes, group)."""
        codes = torch.arange(1 << code_bits(self.group), device=device)
        places = torch.arange(self.group, device=device)
        signs = (codes & 1).float() * 2 - 1
        return torch.where(codes[:, None] >> 1 == places, signs[:, None], 0)

    def _take_apart(self, packed: Tensor, groups: slice) -> Tensor:
        """Return the codes of a range of groups of some rows, whose bytes these are: (R, groups)."""
        bits = code_bits(self.group)
        unpacked = unpack(packed, 1)[:, groups.start * bits % 8 :][:, : (groups.stop - groups.start) * bits]
        places = 1 << torch.arange(bits, device=unpacked.device)
        numbers: Tensor = (unpacked.unflatten(1, (-1, bits)) * places).sum(dim=2)
        return numbers


def code_bits(group: int) -> int:
    """Return the bits that a group takes: one for the sign, the others for the place."""
    return 1 + (group - 1).bit_length()


@cache
def noise(group: int) -> float:
    """Return |decoded - delta|^2 / |delta|^2 of a Gaussian delta: group / E[largest |z| of the group]^2 - 1.

    Example:

    ```python
    >>> from dem_hub.codecs.sign import noise
    >>> [round(noise(group), 2) for group in (1, 4, 8, 16)]
    [0.57, 0.86, 1.52, 2.71]

    ```
    """
    places = torch.linspace(0, 12, 12_001, dtype=torch.float64, device="cpu")
    below = torch.special.erf(places / math.sqrt(2))  # P(|z| < place)
    return group / float(torch.trapezoid(1 - below**group, places)) ** 2 - 1


def check_group(codec: str, group: int) -> None:
    """Refuse a group that is no whole number from 1 to 4,096.

    Raises:
        `CodecError`: the group is out of range, or not an integer.
    """
    if type(group) is not int or not 1 <= group <= MAX_GROUP:
        raise CodecError(f"codec '{codec}' has group={group!r}; it must be a whole number from 1 to {MAX_GROUP}.")


def _largest(values: Tensor, group: int) -> Tensor:
    """Return the column of the largest magnitude in each group: (R, groups) int64, or (1, groups) for groups of one.

    Magnitudes that agree in all but the lowest bits count as equal; the later column wins.
    """
    columns = values.shape[1]
    if group == 1:
        return torch.arange(columns, device=values.device)[None]
    groups = -(-columns // group)
    # The bits of positive floats are in the order of the floats. The lowest of them are replaced by the place, so
    # that one maximum over integers finds the place together with the magnitude. The padding, -1, is below all
    # magnitudes.
    bits = (group - 1).bit_length()
    padding = (0, groups * group - columns)
    order = functional.pad(values.abs().view(torch.int32), padding, value=-1).unflatten(1, (groups, group))
    places = torch.arange(group, dtype=torch.int32, device=values.device)
    largest = torch.where(order < 0, -1, (order >> bits << bits) | places).amax(dim=2)
    return (largest & ((1 << bits) - 1)) + group * torch.arange(groups, device=values.device)


def _pack_codes(codes: Tensor, bits: int) -> Tensor:
    """Pack (R, G) codes of any number of bits, the lowest bit first."""
    return pack((codes.unsqueeze(-1) >> torch.arange(bits, device=codes.device) & 1).flatten(1), 1)
