"""The error of a decoded delta, as it is written into a vector's config: sums in float64, a block of rows at a time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.checkpoints.lazy import InMemory
from dem_hub.codecs.codec import Codec
from dem_hub.codecs.delta import add_deltas
from dem_hub.numerics.buffers import scratch
from dem_hub.numerics.norms import BLOCK, inner_product, widen
from dem_hub.numerics.slices import full_index, row_blocks


@dataclass(frozen=True)
class Accuracy:
    """`norm` is |delta|, `error` is |decoded - delta| / |delta|, and `projection` is <decoded, delta> / |delta|^2."""

    norm: float
    error: float
    projection: float


def measure(codec: Codec, parts: Mapping[str, Tensor], delta: Tensor, base: Tensor) -> Accuracy:
    """Return how accurate the parts that a codec made of a delta are, by decoding them. The delta must not be zero."""
    lazy_parts = {name: InMemory(tensor) for name, tensor in parts.items()}
    squares = 0.0
    errors = 0.0
    products = 0.0
    for block in row_blocks(full_index(delta.shape), BLOCK):
        true = widen(delta[block if block else ...])
        decoded = scratch("decoded", tuple(true.shape), torch.float64, true.device).zero_()
        add_deltas(decoded, [(1.0, codec.decode(lazy_parts, tuple(delta.shape), block, InMemory(base)))])
        squares += inner_product(true, true)
        products += inner_product(decoded, true)
        errors += inner_product(decoded.sub_(true), decoded)
    return Accuracy(math.sqrt(squares), math.sqrt(errors / squares), products / squares)
