"""`nf4`: every element as one of the 16 values of NormalFloat (Dettmers et al., 2023, QLoRA), in the format of
bitsandbytes.

bitsandbytes packs and unpacks it, on GPU and CPU. The `absmax` of each 64 elements is then scaled so that nothing
shrinks, which its format allows. The quality is that of `int4`; use it if other tools must read the parts.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.codec import ENCODE_BLOCK, Codec
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout, Part
from dem_hub.codecs.packing import unbiased_scale
from dem_hub.errors import MissingDependencyError
from dem_hub.numerics.slices import Index, as_rows, at_least_1d, full_index, index_shape, row_blocks, rows_and_columns

GROUP = 64  # elements that share a scale, as QLoRA has it


@dataclass(frozen=True)
class NF4(Codec):
    """Store every element in 4 bits, as bitsandbytes does."""

    name: ClassVar[str] = "nf4"

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """Return the layout: `nf4` (ceil(N / 2),) uint8 and `absmax` (ceil(N / 64),) float32, of all N elements in
        one row.
        """
        count = math.prod(shape)
        return {"nf4": Part(("U8",), (-(-count // 2),)), "absmax": Part(("F32",), (-(-count // GROUP),))}

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Return codes and scales, made in blocks of whole groups."""
        flat = delta.reshape(-1)
        codes = []
        scales = []
        for (block,) in row_blocks(full_index(tuple(flat.shape)), ENCODE_BLOCK):
            values = flat[block]
            packed, state = _bitsandbytes().quantize_4bit(
                values, blocksize=GROUP, compress_statistics=False, quant_type="nf4"
            )
            decoded = _in_groups(_dequantize(packed, state.absmax, len(values)))
            peak = torch.where(state.absmax > 0, state.absmax, 1)[:, None]
            scale = unbiased_scale(_in_groups(values) / peak, decoded / peak).squeeze(1)
            codes.append(packed.reshape(-1))
            scales.append(state.absmax * scale)
        return {"nf4": torch.cat(codes), "absmax": torch.cat(scales)}

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """Return the slice `index`, from the groups that its rows lie in."""
        is_scalar = not shape
        shape, index = at_least_1d(shape, index)
        width = shape[-1]
        rows, columns = rows_and_columns(index, shape)
        if not len(rows) or columns.start == columns.stop:
            return Delta(dense=torch.zeros(index_shape(index), dtype=torch.float32, device=parts["nf4"][:0].device))
        # Elements from the first row to the last, and the same widened to whole groups.
        first_row = int(rows[0])
        start = first_row * width
        stop = (int(rows[-1]) + 1) * width
        first = start // GROUP * GROUP
        last = min(-(-stop // GROUP) * GROUP, math.prod(shape))
        packed = parts["nf4"][first // 2 : -(-last // 2)]
        absmax = parts["absmax"][first // GROUP : -(-last // GROUP)]
        values = _dequantize(packed, absmax, last - first)
        matrix = as_rows(values[start - first : stop - first].view(-1, width))
        dense = matrix[rows.to(matrix.device) - first_row][:, columns]
        return Delta(dense=dense.reshape(() if is_scalar else index_shape(index)))


def _in_groups(values: Tensor) -> Tensor:
    """Return (N,) values as (ceil(N / 64), 64), filled up with zeros."""
    return functional.pad(values, (0, -len(values) % GROUP)).view(-1, GROUP)


def _bitsandbytes() -> Any:
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise MissingDependencyError(f"The codec nf4 needs bitsandbytes ({error}): pip install bitsandbytes") from error
    return bitsandbytes.functional


def _dequantize(packed: Tensor, absmax: Tensor, count: int) -> Tensor:
    """Return the first `count` elements of packed codes, in float32."""
    library = _bitsandbytes()
    state = library.QuantState(
        absmax=absmax.float(),
        shape=torch.Size((count,)),
        code=library.get_4bit_type("nf4", device=packed.device),
        blocksize=GROUP,
        quant_type="nf4",
        dtype=torch.float32,
    )
    return library.dequantize_4bit(packed.reshape(-1, 1), state).reshape(-1)[:count]  # type: ignore[no-any-return]
