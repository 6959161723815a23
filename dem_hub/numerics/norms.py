"""Norms of tensors, and whether they are finite."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dem_hub.numerics.buffers import scratch
from dem_hub.numerics.slices import full_index, row_blocks

if TYPE_CHECKING:
    pass


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor inf; reads it once, without a copy."""
    if not tensor.dtype.is_floating_point or tensor.numel() == 0:
        return True
    low, high = torch.aminmax(tensor)
    return math.isfinite(low) and math.isfinite(high)


BLOCK = 1 << 20  # elements; `exact` puts as many in order together, and would have to decode them twice for less


def squared_norm(tensor: Tensor) -> float:
    """The sum of the squares of all elements."""
    blocks = row_blocks(full_index(tensor.shape), BLOCK)
    return sum(inner_product(wide, wide) for wide in (widen(tensor[block if block else ...]) for block in blocks))


def widen(tensor: Tensor) -> Tensor:
    return scratch("true", tuple(tensor.shape), torch.float64, tensor.device).copy_(tensor)


def inner_product(first: Tensor, second: Tensor) -> float:
    return float(first.flatten() @ second.flatten())
