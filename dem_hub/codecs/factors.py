"""The two factors of a matrix of low rank as parts: float32 or bfloat16 as PEFT has them, or 8 or 4 bits.

In 8 or 4 bits each singular direction is a row of numbers, with a scale for every 64 of them; so both factors are stored rank first.
"""

from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.layout import Layout, Part, code_of
from dem_hub.codecs.packing import dequantize, quantize, quantized_parts
from dem_hub.errors import CodecError

FactorDtype = Literal["float32", "bfloat16", "int8", "int4"]
FACTOR_DTYPES: tuple[FactorDtype, ...] = get_args(FactorDtype)
BITS = {"int8": 8, "int4": 4}


def check_factor_dtype(codec: str, dtype: str) -> None:
    """Refuse a dtype that factors cannot have.

    Raises:
        `CodecError`: as said.
    """
    if dtype not in FACTOR_DTYPES:
        raise CodecError(f"codec '{codec}' has no dtype '{dtype}'; choose {' or '.join(FACTOR_DTYPES)}.")


def factor_layout(rows: int, columns: int, rank: int | str, dtype: str) -> Layout:
    """`left` (R, K) and `right` (K, C); in 8 or 4 bits (K, R) and (K, C), packed, with `left_scale` and `right_scale`."""
    if dtype not in BITS:
        code = code_of(dtype)
        return {"left": Part((code,), (rows, rank)), "right": Part((code,), (rank, columns))}
    left, right = (quantized_parts((0,), size, BITS[dtype]) for size in (rows, columns))
    names = {"left": left[0], "left_scale": left[1], "right": right[0], "right_scale": right[1]}
    return {name: Part(part.dtypes, (rank, *part.shape[1:])) for name, part in names.items()}


def encode_factors(left: Tensor, right: Tensor, dtype: str) -> dict[str, Tensor]:
    """Store left (R, K) and right (K, C), float32."""
    if dtype in BITS:
        codes, scale = quantize(left.T, BITS[dtype])
        right_codes, right_scale = quantize(right, BITS[dtype])
        return {"left": codes, "left_scale": scale, "right": right_codes, "right_scale": right_scale}
    import torch

    return {"left": left.to(getattr(torch, dtype)), "right": right.to(getattr(torch, dtype))}


def decode_factors(parts: Mapping[str, LazyTensor], rows: slice, columns: slice, dtype: str) -> tuple[Tensor, Tensor]:
    """A range of rows of left (R, K), and of columns of right (K, C)."""
    if dtype not in BITS:
        return parts["left"][rows, :], parts["right"][:, columns]
    rank = (slice(0, parts["left"].get_shape()[0]),)
    bits = BITS[dtype]
    left = dequantize(parts["left"], parts["left_scale"], rank, rows, bits)
    return left.T, dequantize(parts["right"], parts["right_scale"], rank, columns, bits)
