"""How large a tensor is, and how true a decoded delta: sums in float64, a few million elements at a time."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dem_hub.checkpoint import InMemory
from dem_hub.codecs.delta import add_deltas
from dem_hub.index import full_index, row_blocks

if TYPE_CHECKING:
    from dem_hub.codecs import Codec

_BLOCK = 1 << 22


def squared_norm(tensor: Tensor) -> float:
    """The sum of the squares of all elements."""
    blocks = row_blocks(full_index(tensor.shape), _BLOCK)
    return sum(float(tensor[block if block else ...].double().square().sum()) for block in blocks)


def measure(codec: "Codec", parts: Mapping[str, Tensor], delta: Tensor, base: Tensor) -> tuple[float, float, float]:
    """|delta|, |decoded - delta| / |delta| and <decoded, delta> / |delta|^2, of what will be decoded from the parts."""
    lazy = {name: InMemory(tensor) for name, tensor in parts.items()}
    squares, errors, products = 0.0, 0.0, 0.0
    for block in row_blocks(full_index(delta.shape), _BLOCK):
        true = delta[block if block else ...]
        decoded = add_deltas(
            torch.zeros_like(true, dtype=torch.float64), [(1.0, codec.decode(lazy, tuple(delta.shape), block, InMemory(base)))]
        )
        products += float((decoded * true).sum())
        errors += float(decoded.sub_(true).square_().sum())
        squares += float(true.double().square().sum())
    return math.sqrt(squares), math.sqrt(errors / squares), products / squares
