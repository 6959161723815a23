"""How large a tensor is, and how true a decoded delta: sums in float64, a block at a time, in memory that threads keep."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import InMemory
from dem_hub.codecs.delta import add_deltas
from dem_hub.numerics.buffers import scratch
from dem_hub.numerics.norms import BLOCK, inner_product, widen
from dem_hub.numerics.slices import full_index, row_blocks

if TYPE_CHECKING:
    from dem_hub.codecs.codec import Codec


def measure(codec: "Codec", parts: Mapping[str, Tensor], delta: Tensor, base: Tensor) -> tuple[float, float, float]:
    """|delta|, |decoded - delta| / |delta| and <decoded, delta> / |delta|^2, of what will be decoded from the parts."""
    lazy = {name: InMemory(tensor) for name, tensor in parts.items()}
    squares, errors, products = 0.0, 0.0, 0.0
    for block in row_blocks(full_index(delta.shape), BLOCK):
        true = widen(delta[block if block else ...])
        decoded = scratch("decoded", tuple(true.shape), torch.float64, true.device).zero_()
        add_deltas(decoded, [(1.0, codec.decode(lazy, tuple(delta.shape), block, InMemory(base)))])
        squares += inner_product(true, true)
        products += inner_product(decoded, true)
        errors += inner_product(decoded.sub_(true), decoded)
    return math.sqrt(squares), math.sqrt(errors / squares), products / squares
