"""The two factors of a low-rank matrix as parts: float32 or bfloat16 as PEFT has them, or 8 or 4 bits.

In 8 or 4 bits, each singular direction is a row of numbers with a scale for every 64 of them. So both factors are
stored rank first.
"""

from collections.abc import Mapping
from typing import Literal, get_args

from torch import Tensor

from dem_hub.checkpoints.lazy import DTYPES, LazyTensor
from dem_hub.codecs.layout import Layout, Part, code_of
from dem_hub.codecs.packing import dequantize, quantize, quantized_parts
from dem_hub.errors import CodecError

FactorDtype = Literal["float32", "bfloat16", "int8", "int4"]
FACTOR_DTYPES: tuple[FactorDtype, ...] = get_args(FactorDtype)
BITS = {"int8": 8, "int4": 4}  # the dtypes that are packed; PEFT reads the others only


def check_factor_dtype(codec: str, dtype: str) -> None:
    """Refuse a dtype that factors cannot have.

    Raises:
        `CodecError`: the dtype is none of `FACTOR_DTYPES`.
    """
    if dtype not in FACTOR_DTYPES:
        raise CodecError(f"codec '{codec}' has no dtype '{dtype}'; choose {' or '.join(FACTOR_DTYPES)}.")


def factor_layout(rows: int, columns: int, rank: int | str, dtype: str) -> Layout:
    """Return the layout of the factors of a (rows, columns) matrix.

    They are `left` (R, K) and `right` (K, C). In 8 or 4 bits they are (K, R) and (K, C), packed, with `left_scale`
    and `right_scale`. A rank that the data decides is given as a name.
    """
    if dtype not in BITS:
        code = code_of(dtype)
        return {"left": Part((code,), (rows, rank)), "right": Part((code,), (rank, columns))}
    left, left_scale = quantized_parts((rank,), rows, BITS[dtype])
    right, right_scale = quantized_parts((rank,), columns, BITS[dtype])
    return {"left": left, "left_scale": left_scale, "right": right, "right_scale": right_scale}


def encode_factors(left: Tensor, right: Tensor, dtype: str) -> dict[str, Tensor]:
    """Return the parts of left (R, K) and right (K, C), both float32, in a dtype."""
    if dtype in BITS:
        codes, scale = quantize(left.T, BITS[dtype])
        right_codes, right_scale = quantize(right, BITS[dtype])
        return {"left": codes, "left_scale": scale, "right": right_codes, "right_scale": right_scale}
    torch_dtype = DTYPES[code_of(dtype)]
    return {"left": left.to(torch_dtype), "right": right.to(torch_dtype)}


def decode_factors(parts: Mapping[str, LazyTensor], rows: slice, columns: slice, dtype: str) -> tuple[Tensor, Tensor]:
    """Return a range of rows of left (R, K), and a range of columns of right (K, C)."""
    if dtype not in BITS:
        return parts["left"][rows, :], parts["right"][:, columns]
    rank = (slice(0, parts["left"].get_shape()[0]),)
    bits = BITS[dtype]
    left = dequantize(parts["left"], parts["left_scale"], rank, rows, bits)
    return left.T, dequantize(parts["right"], parts["right_scale"], rank, columns, bits)
