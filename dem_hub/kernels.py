"""What torch does in many passes over memory, in one: compiled by numba, for CPUs.

Each is a plain loop over the rows of arrays, and what it is to compute is said where it is used. They are compiled once for an installation,
in a second or two, and kept beside this file or in the user's cache. Threads run them side by side.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import float32, float64, int64, uint16, uint32

# The lowest and highest random values are left out, so that a float32 sum which is off by two units in the last place still never
# rounds past the neighbours of the exact result, and a sum that is a target value but for such an error stays that value.
MARGIN = 2
_LOW, _SIZE = np.uint32(0xFFFF), np.uint32(0x7FFFFFFF)  # the lower half of a hash; a float without its sign
_inline = numba.njit(inline="always")


def _compiled(signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile for these types, or take what was compiled before; where nothing can be kept, compile in each process."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(signature, nogil=True, cache=True)(function)  # type: ignore[no-any-return]
        except RuntimeError:  # no folder that can be written to
            return numba.njit(signature, nogil=True)(function)  # type: ignore[no-any-return]

    return decorate


@_inline
def _mix(word):  # lowbias32, as in `rounding`
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
def _round(narrow, total, keys, start, result):
    odd = start & 1  # of the two elements that share the first hash, only the second
    pairs = (total.shape[1] - odd) // 2
    first = uint32((start + odd) >> 1)
    largest = uint32(0)
    for row in range(total.shape[0]):
        values, places, key = total[row], result[row], keys[row]
        if odd:
            word = _word(values[0])
            largest = max(largest, word & _SIZE)
            places[0] = narrow(word, _bits(key, first - uint32(1)) >> uint32(16))
        for pair in range(pairs):
            column, bits = odd + 2 * pair, _bits(key, first + uint32(pair))
            left, right = _word(values[column]), _word(values[column + 1])
            largest = max(largest, max(left & _SIZE, right & _SIZE))
            places[column] = narrow(left, bits & _LOW)
            places[column + 1] = narrow(right, bits >> uint32(16))
        if odd + 2 * pairs < len(values):
            word = _word(values[-1])
            largest = max(largest, word & _SIZE)
            places[-1] = narrow(word, _bits(key, first + uint32(pairs)) & _LOW)
    return np.uint32(largest).view(np.float32)


_ROUND = float32(float64[:, ::1], uint32[::1], int64, uint16[:, ::1])


@_compiled(_ROUND)
def round_to_bfloat16(total, keys, start, result):
    """Round (R, C) to bfloat16's bits, with row keys and the number of the first column; returns the largest magnitude, or NaN."""
    return _round(_to_bfloat16, total, keys, start, result)


@_compiled(_ROUND)
def round_to_float16(total, keys, start, result):
    """The same for float16."""
    return _round(_to_float16, total, keys, start, result)
