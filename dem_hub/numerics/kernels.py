"""A merge on the CPU in one pass: sum a base and a product of factors, draw the random bits, and round.

The product is made in float32, with a bound on its error, and again in float64 for the few elements of which the bound leaves open to
which side they are rounded: the result is that of sums in float64, and takes not much longer than one of float32. torch would make as
many passes over memory as there are operations, most of them of the hash. These loops are compiled by numba, once for an installation,
in some seconds; what comes of it is kept beside this file, or in the user's cache. They hold no lock, so that each core works on a
tensor of its own. `rounding` rounds in operations of torch what an accelerator has summed, by the same bits.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import float32, float64, int64, uint16, uint32, void

# The lowest and highest random values are left out, so that a float32 sum which is off by two units in the last place still never
# rounds past the neighbours of the exact result, and a sum that is a target value but for such an error stays that value.
MARGIN = 2
_SIZE = np.uint32(0x7FFFFFFF)  # a float without its sign
_WIDTH = 256  # columns of a tile, of four rows: with what it is multiplied by, it stays in a core's own cache
_DEPTH = 128  # products summed in one go; shorter sums have smaller errors, and are then summed themselves
_SHORT, _LONG = (
    2.0**-40,
    2.0**40,
)  # norms of a factor's rows and columns, between which float32 neither loses products nor overflows
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
def _widen(value):  # from the bits of bfloat16
    return np.uint32(uint32(value) << uint32(16)).view(np.float32)


@_inline
def _same(value):
    return value


@_inline
def _copy(source, target):
    for place in range(len(source)):
        target[place] = source[place]


@_inline
def _add(source, target):
    for place in range(len(source)):
        target[place] += source[place]


@_inline
def _clear(target, zero):
    for place in range(len(target)):
        target[place] = zero


@_inline
def _aligned(rows, columns):
    memory = np.zeros(rows * columns + 16, dtype=np.float32)
    skipped = (-memory.ctypes.data & 63) // 4  # loads that lie across two lines of the cache take twice as long
    return memory[skipped : skipped + rows * columns].reshape(rows, columns)


@numba.njit(fastmath={"contract", "reassoc"})
def _dot(left, right):
    total = 0.0
    for k in range(len(left)):
        total += float64(left[k]) * float64(right[k])
    return total


@_inline
def _norm(values):
    square = _dot(values, values)
    return max(np.sqrt(square), _SHORT) if square > 0.0 else 0.0


@_inline
def _multiply(tile, left, row, right, start, stop):
    first, second, third, fourth = left[row], left[row + 1], left[row + 2], left[row + 3]
    for k in range(
        start, stop, 4
    ):  # sixteen factors stay in registers, and each number that is read is used four times
        a0, a1, a2, a3 = first[k], first[k + 1], first[k + 2], first[k + 3]
        b0, b1, b2, b3 = second[k], second[k + 1], second[k + 2], second[k + 3]
        c0, c1, c2, c3 = third[k], third[k + 1], third[k + 2], third[k + 3]
        d0, d1, d2, d3 = fourth[k], fourth[k + 1], fourth[k + 2], fourth[k + 3]
        for column in range(_WIDTH):
            x0, x1, x2, x3 = right[k, column], right[k + 1, column], right[k + 2, column], right[k + 3, column]
            tile[0, column] += a0 * x0 + a1 * x1 + a2 * x2 + a3 * x3
            tile[1, column] += b0 * x0 + b1 * x1 + b2 * x2 + b3 * x3
            tile[2, column] += c0 * x0 + c1 * x1 + c2 * x2 + c3 * x3
            tile[3, column] += d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3


@_inline
def _error(depth):
    """How much the sum of a tile may be off, of the product of both norms (Higham, 2002, section 3.1).

    Two roundings of the factors to float32, four in a group of four products, one for each group, and one for each sum of `_DEPTH`;
    one where the bound itself is added, and two for what is rounded in computing it.
    """
    return (2 + 4 + min(depth, _DEPTH) // 4 + depth // _DEPTH + 1 + 2) * 2.0**-24


@_inline
def _round(take, narrow, base, product, spread, length, bits, other, result):
    """Round both ends of where the sums may be; what is returned last is 0 where all of them come out alike."""
    largest, unsure = uint32(0), uint16(0)
    for column in range(len(base)):
        value, error, draw = take(base[column]), length * spread[column], uint32(bits[column])
        low, high = _word(value + (product[column] - error)), _word(value - (-product[column] - error))
        largest = max(largest, max(low & _SIZE, high & _SIZE))
        down, up = narrow(low, draw), narrow(high, draw)
        other[column], result[column] = down, up
        unsure |= down ^ up
    return largest, unsure


@_inline
def _key(row, low, high):
    return _mix(_mix(uint32(row + low)) ^ high)


@_inline
def _draw(key, start, words):  # one hash serves two elements, the first of them even
    first = uint32(start >> 1)
    for pair in range(len(words)):
        words[pair] = _bits(key, first + uint32(pair))


@_inline
def _lay_out(right, start, width, panel, upright, spread):
    rank = len(right)
    for k in range(rank):
        _copy(right[k, start : start + width], panel[k])
    for first in range(0, width, 8):  # a line of the cache at a time, and not one for each number
        for k in range(rank):
            for place in range(first, min(first + 8, width)):
                upright[place, k] = right[k, start + place]
    longest = 0.0
    for place in range(width):
        norm = _norm(upright[place][:rank])
        longest, spread[place] = max(longest, norm), _error(len(panel)) * norm
    return longest


@numba.njit(fastmath={"contract"})
def _multiply_all(product, left, row, panel, part):
    depth = len(panel)
    for i in range(4):
        _clear(product[i], float32(0.0) if depth > 0 else float32(-0.0))  # without factors, -0 stays
    _multiply(product, left, row, panel, 0, min(_DEPTH, depth))
    for k in range(_DEPTH, depth, _DEPTH):
        for i in range(4):
            _clear(part[i], float32(0.0))
        _multiply(part, left, row, panel, k, min(k + _DEPTH, depth))
        for i in range(4):
            _add(part[i], product[i])


@_inline
def _settle(take, narrow, base, left, upright, bits, other, result):
    for place in range(len(base)):
        if result[place] != other[place]:
            exact = take(base[place]) + _dot(left, upright[place][: len(left)])
            result[place] = narrow(_word(exact), uint32(bits[place]))


@_inline
def _merge(take, narrow, base, left, right, rows, low, high, start, result):
    (count, columns), depth = base.shape, (len(right) + 3) // 4 * 4
    few, panel, upright = (
        _aligned(4, depth),
        _aligned(depth, _WIDTH),
        np.zeros((_WIDTH, depth + 8)),
    )  # rows a power of two apart collide
    part, product, spread = _aligned(4, _WIDTH), _aligned(4, _WIDTH), _aligned(1, _WIDTH)[0]
    words, other = np.zeros(_WIDTH // 2 + 1, dtype=np.uint32), np.zeros(_WIDTH, dtype=np.uint16)
    bits = words.view(np.uint16)[start & 1 :]
    keys, lengths, longest = np.zeros(count, dtype=np.uint32), np.zeros(count, dtype=np.float32), 0.0
    for row in range(count):
        keys[row], norm = _key(rows[row], low, high), _norm(left[row])
        lengths[row], longest = norm, max(longest, norm)
    largest = uint32(0)
    for column in range(0, columns, _WIDTH):
        width = min(_WIDTH, columns - column)
        if not max(longest, _lay_out(right, column, width, panel, upright, spread)) <= _LONG:
            return np.float32(np.inf)
        for row in range(0, count, 4):
            if row + 4 <= count and depth == len(right):
                _multiply_all(product, left, row, panel, part)
            else:
                for i in range(4):
                    _copy(left[min(row + i, count - 1)], few[i])
                _multiply_all(product, few, 0, panel, part)
            for i in range(row, min(row + 4, count)):
                source, target = base[i, column : column + width], result[i, column : column + width]
                _draw(keys[i], start + column, words)
                most, unsure = _round(take, narrow, source, product[i - row], spread, lengths[i], bits, other, target)
                largest = max(largest, most)
                if unsure:
                    _settle(take, narrow, source, left[i], upright, bits, other, target)
    return np.uint32(largest).view(np.float32)


_REST = (float32[:, ::1], float64[:, ::1], uint32[::1], uint32, uint32, int64, uint16[:, ::1])


@_compiled(float32(uint16[:, ::1], *_REST))
def merge_bfloat16(base, left, right, rows, low, high, start, result):
    """Round base (R, C) + left (R, K) @ right (K, C), as if summed in float64, to bfloat16.

    `base` and `result` are bits of bfloat16; `rows`, `low` and `high` are those of a `Noise`, `start` is the number of the first column.
    Returns the largest magnitude that the error of the product leaves possible, or NaN; infinity, and no result, where factors are so
    large that float32 is not for them.
    """
    return _merge(_widen, _to_bfloat16, base, left, right, rows, low, high, start, result)


@_compiled(float32(float64[:, ::1], *_REST))
def round_to_bfloat16(total, left, right, rows, low, high, start, result):
    """The same of a base in float64."""
    return _merge(_same, _to_bfloat16, total, left, right, rows, low, high, start, result)


@_compiled(float32(float64[:, ::1], *_REST))
def round_to_float16(total, left, right, rows, low, high, start, result):
    """The same, to float16."""
    return _merge(_same, _to_float16, total, left, right, rows, low, high, start, result)


@_compiled(void(float64[::1], float32[::1], float64))
def add_scaled(total, values, coefficient):
    """total += coefficient * values."""
    for place in range(len(total)):
        total[place] += coefficient * values[place]
