"""A merge on the CPU in one pass: sum a base and a product of factors, draw the random bits, and round.

The product is computed in float32, with a bound on its error. It is computed again in float64 for the few elements
whose rounding the bound leaves open. So the result is that of sums in float64, and takes little longer than one in
float32. torch would pass over memory once for each operation, and most operations are of the hash.

numba compiles each of these loops when it is first called, once for an installation, which takes some seconds. The
compiled code is kept beside this file, or in the user's cache. Only `passes` imports this module: numba is large. The
loops release the GIL, so that each core works on a tensor of its own. `rounding` rounds with operations of torch, and
the same random bits, what an accelerator has summed.

Words: R rows and C columns of a tensor, K rank of the product left (R, K) @ right (K, C). A tile is 4 rows by 256
columns of the result.
"""

import numba
import numpy as np
from numba import float32, float64, int64, uint16, uint32, void

from dem_hub.numerics.compilation import compiled
from dem_hub.numerics.noise import MARGIN

# The bits of a float32 without its sign.
_MAGNITUDE = np.uint32(0x7FFFFFFF)

# Columns of a tile. With the part of the right factor that it is multiplied by, a tile stays in a core's own cache.
_WIDTH = 256

# Products that are summed in one go. Shorter sums have smaller errors, and are then summed themselves.
_DEPTH = 128

# The norms of a row of the left factor, and of a column of the right one, between which float32 neither loses
# products nor overflows.
_SHORT = 2.0**-40
_LONG = 2.0**40

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
    """Return zeros that begin at a line of the cache: loads that lie across two lines take twice as long."""
    memory = np.zeros(rows * columns + 16, dtype=np.float32)
    skipped = (-memory.ctypes.data & 63) // 4
    return memory[skipped : skipped + rows * columns].reshape(rows, columns)


@numba.njit(fastmath={"contract", "reassoc"})
def _dot(left, right):
    total = 0.0
    for k in range(len(left)):
        total += float64(left[k]) * float64(right[k])
    return total


@_inline
def _norm(values):
    """Return the norm of a vector, at least `_SHORT` if it is not 0."""
    square = _dot(values, values)
    return max(np.sqrt(square), _SHORT) if square > 0.0 else 0.0


@_inline
def _multiply(tile, left, row, right, start, stop):
    """Add the products of four rows of the left factor with `right`, for K from `start` to `stop`.

    Sixteen numbers of the left factor stay in registers, and each number that is read is used four times.
    """
    first, second, third, fourth = left[row], left[row + 1], left[row + 2], left[row + 3]
    for k in range(start, stop, 4):
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
    """Return how far the sum of a tile may be off, relative to the product of both norms (Higham, 2002, section 3.1).

    The roundings are two of the factors to float32, four in a group of four products, one for each group, one for
    each sum of `_DEPTH` products, one where the bound itself is added, and two in computing the bound.
    """
    return (2 + 4 + min(depth, _DEPTH) // 4 + depth // _DEPTH + 1 + 2) * 2.0**-24


@_inline
def _round(load, round_bits, base, product, column_errors, left_norm, bits, other, result):
    """Round both ends of the interval in which each sum lies: `result` has the upper ends, `other` the lower ends.

    Returns the largest magnitude, as the bits of a float32, and 0 if both ends of all intervals are rounded alike.
    """
    largest = uint32(0)
    unsure = uint16(0)
    for column in range(len(base)):
        value = load(base[column])
        error = left_norm * column_errors[column]
        draw = uint32(bits[column])
        low = _word(value + (product[column] - error))
        high = _word(value - (-product[column] - error))
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
def _lay_out(right, start, width, right_tile, right_tile_t, column_errors):
    """Copy some columns of the right factor: in float32 as they lie, and in float64 transposed.

    `column_errors` takes the error of each column, relative to the norm of a row of the left factor. Returns the
    largest norm of a column.
    """
    rank = len(right)
    for k in range(rank):
        _copy(right[k, start : start + width], right_tile[k])
    # Eight columns at a time are a line of the cache, so that a line is read once and not once for each number.
    for first in range(0, width, 8):
        for k in range(rank):
            for place in range(first, min(first + 8, width)):
                right_tile_t[place, k] = right[k, start + place]
    longest = 0.0
    for place in range(width):
        norm = _norm(right_tile_t[place][:rank])
        longest = max(longest, norm)
        column_errors[place] = _error(len(right_tile)) * norm
    return longest


@numba.njit(fastmath={"contract"})
def _multiply_all(product, left, row, right_tile, part):
    """Compute a tile of the product: four rows of the left factor, from `row` on, with the columns of the right
    factor.
    """
    depth = len(right_tile)
    for i in range(4):
        _clear(product[i], float32(0.0) if depth > 0 else float32(-0.0))  # without factors, a base of -0 stays -0
    _multiply(product, left, row, right_tile, 0, min(_DEPTH, depth))
    for k in range(_DEPTH, depth, _DEPTH):
        for i in range(4):
            _clear(part[i], float32(0.0))
        _multiply(part, left, row, right_tile, k, min(k + _DEPTH, depth))
        for i in range(4):
            _add(part[i], product[i])


@_inline
def _settle(load, round_bits, base, left_row, right_tile_t, bits, other, result):
    """Round the sums in float64 where both ends of the interval are rounded differently."""
    for place in range(len(base)):
        if result[place] != other[place]:
            exact = load(base[place]) + _dot(left_row, right_tile_t[place][: len(left_row)])
            result[place] = round_bits(_word(exact), uint32(bits[place]))


@_inline
def _merge(load, round_bits, base, left, right, rows, low, high, start, result):
    """Round base + left @ right, tile by tile.

                         right (K, C)
                       +--------+--------+----
                       | 256    | 256    |
                       | columns| columns|
                       +--------+--------+----
        left (R, K)      base, result (R, C)
        +----------+   +--------+--------+----
        | 4 rows   |   | tile   | tile   |          product (4, 256): the tile of left @ right in float32
        +----------+   +--------+--------+----
        | 4 rows   |   | tile   | tile   |          part (4, 256): the sum of the next 128 products, added to `product`
        +----------+   +--------+--------+----

    `right_tile` (K, 256) is one panel of the right factor in float32, laid out once for all rows. `right_tile_t`
    (256, K) is the same in float64, transposed, for `_settle`.

    K is padded with zeros to a multiple of four. The last rows are copied to `padded_rows` (4, K) where there are
    fewer than four, and all rows where K is padded. `load` widens an element of the base, and `round_bits` rounds a
    float32 by random bits.
    """
    count, columns = base.shape
    depth = (len(right) + 3) // 4 * 4
    padded_rows = _aligned(4, depth)
    right_tile = _aligned(depth, _WIDTH)
    # Padded by 8 columns: rows a power of two apart would map to the same sets of the cache.
    right_tile_t = np.zeros((_WIDTH, depth + 8))
    part = _aligned(4, _WIDTH)
    product = _aligned(4, _WIDTH)
    column_errors = _aligned(1, _WIDTH)[0]
    words = np.zeros(_WIDTH // 2 + 1, dtype=np.uint32)
    other = np.zeros(_WIDTH, dtype=np.uint16)
    bits = words.view(np.uint16)[start & 1 :]
    keys = np.zeros(count, dtype=np.uint32)
    left_norms = np.zeros(count, dtype=np.float32)
    longest = 0.0
    for row in range(count):
        keys[row] = _hash_row(rows[row], low, high)
        norm = _norm(left[row])
        left_norms[row] = norm
        longest = max(longest, norm)
    largest = uint32(0)
    for column in range(0, columns, _WIDTH):
        width = min(_WIDTH, columns - column)
        if not max(longest, _lay_out(right, column, width, right_tile, right_tile_t, column_errors)) <= _LONG:
            return np.float32(np.inf)
        for row in range(0, count, 4):
            if row + 4 <= count and depth == len(right):
                _multiply_all(product, left, row, right_tile, part)
            else:
                for i in range(4):
                    _copy(left[min(row + i, count - 1)], padded_rows[i])
                _multiply_all(product, padded_rows, 0, right_tile, part)
            for i in range(row, min(row + 4, count)):
                source = base[i, column : column + width]
                target = result[i, column : column + width]
                _draw(keys[i], start + column, words)
                row_largest, unsure = _round(
                    load, round_bits, source, product[i - row], column_errors, left_norms[i], bits, other, target
                )
                largest = max(largest, row_largest)
                if unsure:
                    _settle(load, round_bits, source, left[i], right_tile_t, bits, other, target)
    return np.uint32(largest).view(np.float32)


# The arguments left, right, rows, low, high, start and result, which the compiled passes have in common.
_REST = (float32[:, ::1], float64[:, ::1], uint32[::1], uint32, uint32, int64, uint16[:, ::1])


@compiled(float32(uint16[:, ::1], *_REST))
def merge_bfloat16(base, left, right, rows, low, high, start, result):
    """Round base (R, C) + left (R, K) @ right (K, C) to bfloat16, as if summed in float64.

    `base` and `result` are bits of bfloat16. `rows`, `low` and `high` are those of a `Noise`; `start` is the number
    of the first column.

    Returns an upper bound of the magnitude of every sum before rounding, because a sum is known only within the error
    of its float32 product; NaN if a sum is NaN. If the factors are too large for float32, it returns infinity and
    leaves `result` undefined.
    """
    return _merge(_load_bfloat16, _to_bfloat16, base, left, right, rows, low, high, start, result)


@compiled(float32(float64[:, ::1], *_REST))
def round_to_bfloat16(total, left, right, rows, low, high, start, result):
    """Round total + left @ right to bfloat16, like [`merge_bfloat16`], with the total in float64."""
    return _merge(_load_float64, _to_bfloat16, total, left, right, rows, low, high, start, result)


@compiled(float32(float64[:, ::1], *_REST))
def round_to_float16(total, left, right, rows, low, high, start, result):
    """Round total + left @ right to float16, like [`round_to_bfloat16`]."""
    return _merge(_load_float64, _to_float16, total, left, right, rows, low, high, start, result)


@compiled(void(float64[::1], float32[::1], float64))
def add_scaled(total, values, coefficient):
    """Add coefficient * values to the total, in place."""
    for place in range(len(total)):
        total[place] += coefficient * values[place]
