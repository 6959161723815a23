"""A merge on the CPU in one pass: add a product of factors to a base, draw the random bits, and round.

The product comes in float32, with a bound on its error (see `products`). The few elements whose rounding the bound
leaves open are summed again in float64. So the result is that of sums in float64, and takes little longer than one in
float32. torch would pass over memory once for each operation, and most operations are of the hash.

numba compiles each of these loops when it is first called, once for an installation, which takes some seconds. The
compiled code is kept beside this file, or in the user's cache. Only `passes` imports this module: numba is large. The
loops release the GIL, so that each core works on a tensor of its own. `rounding` rounds with operations of torch, and
the same random bits, what an accelerator has summed.

Words: R rows and C columns of a tensor, K rank of the product left (R, K) @ right (K, C).
"""

import numba
import numpy as np
from numba import float32, float64, int64, uint16, uint32, void

from dem_hub.numerics.compilation import compiled
from dem_hub.numerics.noise import MARGIN

# The bits of a float32 without its sign.
_MAGNITUDE = np.uint32(0x7FFFFFFF)

# Columns that are rounded at a time. What is kept of them stays in a core's own first cache.
_WIDTH = 256

_inline = numba.njit(inline="always")


@_inline
def _mix(word):
    """Apply the hash `lowbias32`, as `noise` does."""
    word = uint32((word ^ (word >> uint32(16))) * uint32(0x7FEB352D))
    word = uint32((word ^ (word >> uint32(15))) * uint32(0x846CA68B))
    return uint32(word ^ (word >> uint32(16)))


@_inline
def _hash_pair(key, pair):
    """Return 32 random bits for two neighbouring columns of the row that has this key."""
    return _mix(uint32(key + pair * uint32(2654435769)))


@_inline
def _to_bfloat16(word, bits):
    """Add random bits below the last bit of bfloat16, then cut them off: the carry is the rounding."""
    bits = min(max(bits, uint32(MARGIN)), uint32(0xFFFF - MARGIN))
    return uint16((word + bits) >> uint32(16))


@_inline
def _to_float16(word, bits):
    """Add 13 random bits below the last bit of float16, then cut them off."""
    bits = min(max(bits >> uint32(3), uint32(MARGIN)), uint32(0x1FFF - MARGIN))
    sign = (word >> uint32(16)) & uint32(0x8000)
    magnitude = word & _MAGNITUDE
    # Below 2^-14, the smallest normal number of float16, all steps are 2^-24.
    if magnitude < uint32(0x38800000):
        steps = np.uint32(magnitude).view(np.float32) * float32(2.0**24)
        return uint16(sign | uint32(steps + float32(bits) * float32(2.0**-13)))
    # The exponent of float32 is biased by 127, that of float16 by 15.
    return uint16(sign | (((magnitude + bits) >> uint32(13)) - uint32(112 << 10)))


@_inline
def _word(value):
    """Return the bits of a value in float32."""
    return np.float32(value).view(np.uint32)


@_inline
def _load_bfloat16(value):
    """Return the float32 with these bits of bfloat16."""
    return np.uint32(uint32(value) << uint32(16)).view(np.float32)


@_inline
def _load_float64(value):
    return value


@numba.njit(fastmath={"contract", "reassoc"})
def _dot(left, right):
    total = 0.0
    for k in range(len(left)):
        total += float64(left[k]) * float64(right[k])
    return total


@_inline
def _round(load, round_bits, base, product, zero, column_errors, row_norm, bits, other, result):
    """Round both ends of the interval in which each sum lies: `result` has the upper ends, `other` the lower ends.

    A product of 0 can have either sign. Plus `zero` it has none, if that is 0, so that a sum of -0 and a product is 0;
    if it is -0, as where there is no product, a base of -0 stays.

    Returns the largest magnitude, as the bits of a float32, and 0 if both ends of all intervals are rounded alike.
    """
    largest = uint32(0)
    unsure = uint16(0)
    for column in range(len(base)):
        value = load(base[column])
        change = product[column] + zero
        error = row_norm * column_errors[column]
        draw = uint32(bits[column])
        low = _word(value + (change - error))
        high = _word(value - (-change - error))
        largest = max(largest, max(low & _MAGNITUDE, high & _MAGNITUDE))
        down = round_bits(low, draw)
        up = round_bits(high, draw)
        other[column] = down
        result[column] = up
        unsure |= down ^ up
    return largest, unsure


@_inline
def _hash_row(row, low, high):
    return _mix(_mix(uint32(row + low)) ^ high)


@_inline
def _draw(key, start, words):
    """Fill `words` with random bits for the columns from `start` on, or from the one before where `start` is odd: two
    columns a word.
    """
    first = uint32(start >> 1)
    for pair in range(len(words)):
        words[pair] = _hash_pair(key, first + uint32(pair))


@_inline
def _settle(load, round_bits, base, row, columns, bits, other, result):
    """Round the sums in float64 where both ends of the interval are rounded differently."""
    for place in range(len(base)):
        if result[place] != other[place]:
            exact = load(base[place]) + _dot(row, columns[place])
            result[place] = round_bits(_word(exact), uint32(bits[place]))


@_inline
def _merge(load, round_bits, base, change, noise, result):
    """Round base + product, row by row, a piece of `_WIDTH` columns at a time.

    `load` widens an element of the base, and `round_bits` rounds a float32 by random bits.
    """
    product, left, columns, row_norms, column_errors = change
    rows, low, high, start = noise
    width = base.shape[1]
    words = np.zeros(_WIDTH // 2 + 1, dtype=np.uint32)
    bits = words.view(np.uint16)[start & 1 :]
    other = np.zeros(_WIDTH, dtype=np.uint16)
    zero = float32(0.0) if len(product) > 0 else float32(-0.0)
    nothing = np.full((1, width), zero, dtype=np.float32)
    largest = uint32(0)
    for row in range(len(base)):
        changes = product[row] if len(product) > 0 else nothing[0]
        key = _hash_row(rows[row], low, high)
        for first in range(0, width, _WIDTH):
            piece = slice(first, min(first + _WIDTH, width))
            _draw(key, start + first, words)
            piece_largest, unsure = _round(
                load,
                round_bits,
                base[row, piece],
                changes[piece],
                zero,
                column_errors[piece],
                row_norms[row],
                bits,
                other,
                result[row, piece],
            )
            largest = max(largest, piece_largest)
            if unsure:
                _settle(load, round_bits, base[row, piece], left[row], columns[piece], bits, other, result[row, piece])
    return np.uint32(largest).view(np.float32)


# What is added: product, left, columns, row_norms and column_errors, as in a `Block` of a product.
_CHANGE = numba.types.Tuple(  # type: ignore[no-untyped-call]
    (float32[:, ::1], float32[:, ::1], float64[:, ::1], float32[::1], float32[::1])
)

# The random bits: rows, low, high and start. The first three are those of a `Noise`; `start` is the number of the first
# column.
_NOISE = numba.types.Tuple((uint32[::1], uint32, uint32, int64))  # type: ignore[no-untyped-call]


@compiled(float32(uint16[:, ::1], _CHANGE, _NOISE, uint16[:, ::1]))
def merge_bfloat16(base, change, noise, result):
    """Round base (R, C) + product to bfloat16, as if the product was in float64; both are bits of bfloat16.

    Returns an upper bound of the magnitude of every sum before rounding, because a sum is known only within the error
    of its product; NaN if a sum is NaN.
    """
    return _merge(_load_bfloat16, _to_bfloat16, base, change, noise, result)


@compiled(float32(float64[:, ::1], _CHANGE, _NOISE, uint16[:, ::1]))
def round_to_bfloat16(total, change, noise, result):
    """Round total + product to bfloat16, like [`merge_bfloat16`], with the total in float64."""
    return _merge(_load_float64, _to_bfloat16, total, change, noise, result)


@compiled(float32(float64[:, ::1], _CHANGE, _NOISE, uint16[:, ::1]))
def round_to_float16(total, change, noise, result):
    """Round total + product to float16, like [`round_to_bfloat16`]."""
    return _merge(_load_float64, _to_float16, total, change, noise, result)


@compiled(void(float64[::1], float32[::1], float64))
def add_scaled(total, values, coefficient):
    """Add coefficient * values to the total, in place."""
    for place in range(len(total)):
        total[place] += coefficient * values[place]
