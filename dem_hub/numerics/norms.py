"""Sums of squares of tensors, and the check for NaN and inf.

Sums are in float64, one block of rows at a time, so that they are exact enough for any tensor and take no copy of it.
"""

import math

import torch
from torch import Tensor

from dem_hub.numerics.buffers import Buffer, scratch
from dem_hub.numerics.slices import full_index, row_blocks

# Elements of a block. The codec `exact` sorts as many together, and would have to decode a block twice for smaller
# ones.
BLOCK = 1 << 20


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor has neither NaN nor inf. It is read once, without a copy."""
    if not tensor.dtype.is_floating_point or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return math.isfinite(low) and math.isfinite(high)


def squared_norm(tensor: Tensor) -> float:
    """Return the sum of the squares of all elements."""
    total = 0.0
    for block in row_blocks(full_index(tensor.shape), BLOCK):
        wide = widen(tensor[block if block else ...])
        total += inner_product(wide, wide)
    return total


def widen(tensor: Tensor) -> Buffer:
    """Return a tensor in float64."""
    return scratch("true", tuple(tensor.shape), torch.float64, tensor.device).copy_(tensor)


def inner_product(first: Tensor, second: Tensor) -> float:
    """Return the sum of the products of the elements of two tensors of one shape."""
    return float(first.flatten() @ second.flatten())
