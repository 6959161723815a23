"""`nf4`: every element as one of the 16 values of NormalFloat (Dettmers et al., 2023, QLoRA), in bitsandbytes' own format.

bitsandbytes packs and unpacks it, on GPU and CPU; the `absmax` of each 64 elements is then scaled so that nothing shrinks, which its
format allows. As good as `int4`; for those whose other tools read it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.layout import Layout, Part
from dem_hub.codecs.packing import unbiased_scale
from dem_hub.errors import MissingDependencyError
from dem_hub.numerics.slices import (
    Index,
    as_rows,
    count_elements,
    full_index,
    index_shape,
    row_blocks,
    rows_and_columns,
)

BLOCK_SIZE = 64
_BLOCK = 1 << 22


@dataclass(frozen=True)
class NF4:
    """Store every element in 4 bits, as bitsandbytes does."""

    name: ClassVar[str] = "nf4"

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """`nf4` (ceil(N / 2),) uint8 and `absmax` (ceil(N / 64),) float32, of all N elements in a line."""
        count = count_elements(shape)
        return {"nf4": Part(("U8",), (-(-count // 2),)), "absmax": Part(("F32",), (-(-count // BLOCK_SIZE),))}

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Codes and scales, a few million elements at a time."""
        flat = delta.reshape(-1)
        codes, scales = [], []
        for (block,) in row_blocks(full_index(tuple(flat.shape)), _BLOCK):
            values = flat[block]
            packed, state = _functional().quantize_4bit(
                values, blocksize=BLOCK_SIZE, compress_statistics=False, quant_type="nf4"
            )
            pad = (0, -len(values) % BLOCK_SIZE)
            decoded = functional.pad(_dequantize(packed, state.absmax, len(values)), pad).view(-1, BLOCK_SIZE)
            true = functional.pad(values, pad).view(-1, BLOCK_SIZE)
            peak = torch.where(state.absmax > 0, state.absmax, 1)[:, None]
            codes.append(packed.reshape(-1))
            scales.append(state.absmax * unbiased_scale(true / peak, decoded / peak).squeeze(1))
        return {"nf4": torch.cat(codes), "absmax": torch.cat(scales)}

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """The slice `index`, from the rows that it lies in."""
        whole, index = shape or (1,), index if shape else (slice(0, 1),)
        rows, columns = rows_and_columns(index, whole)
        if not len(rows) or columns.start == columns.stop:
            return Delta(dense=torch.zeros(index_shape(index), device=parts["nf4"][:0].device))
        start, stop = int(rows[0]) * whole[-1], (int(rows[-1]) + 1) * whole[-1]
        first = start // BLOCK_SIZE * BLOCK_SIZE
        last = min(-(-stop // BLOCK_SIZE) * BLOCK_SIZE, count_elements(whole))
        packed = parts["nf4"][first // 2 : -(-last // 2)]
        values = _dequantize(packed, parts["absmax"][first // BLOCK_SIZE : -(-last // BLOCK_SIZE)], last - first)
        matrix = as_rows(values[start - first : stop - first].view(-1, whole[-1]))
        dense = matrix[rows.to(matrix.device) - int(rows[0])][:, columns]
        return Delta(dense=dense.reshape(index_shape(index) if shape else ()))


def _functional() -> Any:
    try:
        import bitsandbytes.functional
    except ImportError as error:
        raise MissingDependencyError(f"The codec nf4 needs bitsandbytes ({error}): pip install bitsandbytes") from error
    return bitsandbytes.functional


def _dequantize(packed: Tensor, absmax: Tensor, count: int) -> Tensor:
    """The first so many elements of packed codes, float32."""
    library = _functional()
    state = library.QuantState(
        absmax=absmax.float(),
        shape=torch.Size((count,)),
        code=library.get_4bit_type("nf4", device=packed.device),
        blocksize=BLOCK_SIZE,
        quant_type="nf4",
        dtype=torch.float32,
    )
    return library.dequantize_4bit(packed.reshape(-1, 1), state).reshape(-1)[:count]  # type: ignore[no-any-return]
