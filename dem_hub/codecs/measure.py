"""How large a tensor is, and how true a decoded delta: sums in float64, a block at a time, in memory that threads keep."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dem_hub.checkpoints.reader import InMemory
from dem_hub.codecs.delta import add_deltas
from dem_hub.numerics.buffers import scratch
from dem_hub.numerics.slices import full_index, row_blocks

if TYPE_CHECKING:
    from dem_hub.codecs import Codec

_BLOCK = 1 << 20  # elements; `exact` puts as many in order together, and would have to decode them twice for less


def squared_norm(tensor: Tensor) -> float:
    """The sum of the squares of all elements."""
    blocks = row_blocks(full_index(tensor.shape), _BLOCK)
    return sum(_product(wide, wide) for wide in (_widen(tensor[block if block else ...]) for block in blocks))


def measure(codec: "Codec", parts: Mapping[str, Tensor], delta: Tensor, base: Tensor) -> tuple[float, float, float]:
    """|delta|, |decoded - delta| / |delta| and <decoded, delta> / |delta|^2, of what will be decoded from the parts."""
    lazy = {name: InMemory(tensor) for name, tensor in parts.items()}
    squares, errors, products = 0.0, 0.0, 0.0
    for block in row_blocks(full_index(delta.shape), _BLOCK):
        true = _widen(delta[block if block else ...])
        decoded = scratch("decoded", tuple(true.shape), torch.float64, true.device).zero_()
        add_deltas(decoded, [(1.0, codec.decode(lazy, tuple(delta.shape), block, InMemory(base)))])
        squares += _product(true, true)
        products += _product(decoded, true)
        errors += _product(decoded.sub_(true), decoded)
    return math.sqrt(squares), math.sqrt(errors / squares), products / squares


def _widen(tensor: Tensor) -> Tensor:
    return scratch("true", tuple(tensor.shape), torch.float64, tensor.device).copy_(tensor)


def _product(first: Tensor, second: Tensor) -> float:
    return float(first.flatten() @ second.flatten())
