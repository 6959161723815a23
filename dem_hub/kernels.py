"""A merge on the CPU in one pass: sum a base and a product of factors in float64, draw the random bits, and round.

torch would make as many passes over memory as there are operations, most of them of the hash. These loops are compiled by numba, once for
an installation, in some seconds; what comes of it is kept beside this file, or in the user's cache. They hold no lock, so that each
core works on a tensor of its own. `rounding` rounds in operations of torch what an accelerator has summed, by the same bits.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import float32, float64, int64, uint16, uint32, void

# The lowest and highest random values are left out, so that a float32 sum which is off by two units in the last place still never
# rounds past the neighbours of the exact result, and a sum that is a target value but for such an error stays that value.
MARGIN = 2
_LOW, _SIZE = np.uint32(0xFFFF), np.uint32(0x7FFFFFFF)  # the lower half of a hash; a float without its sign
_WIDTH = 128  # columns of a tile, of four rows: with what it is multiplied by, it stays in a core's own cache
_inline = numba.njit(inline="always")


def _compiled(signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile for these types, or take what was compiled before; where nothing can be kept, compile in each process."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(signature, nogil=True, cache=True, fastmath={"contract"})(function)  # type: ignore[no-any-return]
        except (RuntimeError, OSError, EOFError):  # no folder that can be written to, a full disk, a file that was cut
            return numba.njit(signature, nogil=True, fastmath={"contract"})(function)  # type: ignore[no-any-return]

    return decorate


@_inline
def _mix(word):  # as in `noise`
    word = uint32((word ^ (word >> uint32(16))) * uint32(0x7FEB352D))
    word = uint32((word ^ (word >> uint32(15))) * uint32(0x846CA68B))
    return uint32(word ^ (word >> uint32(16)))


@_inline
def _bits(key, pair):
    return _mix(uint32(key + pair * uint32(2654435769)))


@_inline
def _to_bfloat16(word, bits):
    bits = min(max(bits, uint32(MARGIN)), uint32(0xFFFF - MARGIN))
    return uint16((word + bits) >> uint32(16))


@_inline
def _to_float16(word, bits):
    bits = min(max(bits >> uint32(3), uint32(MARGIN)), uint32(0x1FFF - MARGIN))
    sign, size = (word >> uint32(16)) & uint32(0x8000), word & _SIZE
    if size < uint32(0x38800000):  # 2^-14, the smallest normal number
        steps = np.uint32(size).view(np.float32) * float32(2.0**24)
        return uint16(sign | uint32(steps + float32(bits) * float32(2.0**-13)))
    return uint16(sign | (((size + bits) >> uint32(13)) - uint32(112 << 10)))


@_inline
def _word(value):
    return np.float32(value).view(np.uint32)


@_inline
def _round(narrow, values, key, start, result):
    odd = start & 1  # of the two elements that share the first hash, only the second
    pairs = (len(values) - odd) // 2
    first = uint32((start + odd) >> 1)
    largest = uint32(0)
    if odd:
        word = _word(values[0])
        largest = max(largest, word & _SIZE)
        result[0] = narrow(word, _bits(key, first - uint32(1)) >> uint32(16))
    for pair in range(pairs):
        column, bits = odd + 2 * pair, _bits(key, first + uint32(pair))
        left, right = _word(values[column]), _word(values[column + 1])
        largest = max(largest, max(left & _SIZE, right & _SIZE))
        result[column] = narrow(left, bits & _LOW)
        result[column + 1] = narrow(right, bits >> uint32(16))
    if odd + 2 * pairs < len(values):
        word = _word(values[-1])
        largest = max(largest, word & _SIZE)
        result[-1] = narrow(word, _bits(key, first + uint32(pairs)) & _LOW)
    return largest


@_inline
def _multiply(tile, scalars, panel):
    for k in range(0, len(panel), 4):  # sixteen factors stay in registers, and each number that is read is used four times
        a0, a1, a2, a3 = scalars[0, k], scalars[0, k + 1], scalars[0, k + 2], scalars[0, k + 3]
        b0, b1, b2, b3 = scalars[1, k], scalars[1, k + 1], scalars[1, k + 2], scalars[1, k + 3]
        c0, c1, c2, c3 = scalars[2, k], scalars[2, k + 1], scalars[2, k + 2], scalars[2, k + 3]
        d0, d1, d2, d3 = scalars[3, k], scalars[3, k + 1], scalars[3, k + 2], scalars[3, k + 3]
        for column in range(_WIDTH):
            x0, x1, x2, x3 = panel[k, column], panel[k + 1, column], panel[k + 2, column], panel[k + 3, column]
            tile[0, column] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
            tile[1, column] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
            tile[2, column] += c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3
            tile[3, column] += d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3


@_inline
def _copy(source, target):
    for column in range(len(source)):
        target[column] = source[column]


@_inline
def _widen(source, target):  # from the bits of bfloat16
    for column in range(len(source)):
        target[column] = np.uint32(uint32(source[column]) << uint32(16)).view(np.float32)


@_inline
def _merge(take, narrow, base, left, right, keys, start, result):
    rows, columns = base.shape
    depth = (left.shape[1] + 3) // 4 * 4
    panel, tile, scalars = np.zeros((depth, _WIDTH)), np.zeros((4, _WIDTH)), np.zeros((4, depth))
    largest = uint32(0)
    for column in range(0, columns, _WIDTH):
        width = min(_WIDTH, columns - column)
        for k in range(len(right)):
            _copy(right[k, column : column + width], panel[k])
        for row in range(0, rows, 4):
            count = min(4, rows - row)
            for i in range(count):
                take(base[row + i, column : column + width], tile[i])
                _copy(left[row + i], scalars[i])
            _multiply(tile, scalars, panel)
            for i in range(count):
                place = result[row + i, column : column + width]
                largest = max(largest, _round(narrow, tile[i, :width], keys[row + i], start + column, place))
    return np.uint32(largest).view(np.float32)


_REST = (float64[:, ::1], float64[:, ::1], uint32[::1], int64, uint16[:, ::1])


@_compiled(float32(uint16[:, ::1], *_REST))
def merge_bfloat16(base, left, right, keys, start, result):
    """Round base (R, C) + left (R, K) @ right (K, C), summed in float64, to bfloat16.

    `base` and `result` are bits of bfloat16; `keys` are those of the rows, `start` is the number of the first column. Returns the largest
    magnitude, or NaN.
    """
    return _merge(_widen, _to_bfloat16, base, left, right, keys, start, result)


@_compiled(float32(float64[:, ::1], *_REST))
def round_to_bfloat16(total, left, right, keys, start, result):
    """The same of a base in float64."""
    return _merge(_copy, _to_bfloat16, total, left, right, keys, start, result)


@_compiled(float32(float64[:, ::1], *_REST))
def round_to_float16(total, left, right, keys, start, result):
    """The same, to float16."""
    return _merge(_copy, _to_float16, total, left, right, keys, start, result)


@_compiled(void(float64[::1], float32[::1], float64))
def add_scaled(total, values, coefficient):
    """total += coefficient * values."""
    for place in range(len(total)):
        total[place] += coefficient * values[place]
