"""Deltas as numbers, tensor by tensor: decoded, their norms and their inner products.

The inner product of two low-rank deltas is computed from their factors, so nothing is multiplied out.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.codecs import add_deltas
from dem_hub.codecs.component import StoredDelta
from dem_hub.codecs.delta import Delta, inner
from dem_hub.numerics.slices import full_index, row_blocks
from dem_hub.vectors.compatibility import check_weights

if TYPE_CHECKING:
    from dem_hub.vectors.vector import DistributionVector

# Elements of a tensor that are decoded at once: 16 MB in float32 for each vector. Chosen by hand, not measured.
_BLOCK = 1 << 22


def tensor_norms(vector: "DistributionVector", base: Base) -> dict[str, float]:
    """Return the Frobenius norm of each tensor's delta, by the base's key.

    The norms are those that extraction measured. For a plain LoRA adapter they are computed from the factors.

    Args:
        vector ([`DistributionVector`]): The vector.
        base ([`Base`]): The base it was taken from.
    """
    if vector.config is not None:
        return {name: record.norm for name, record in vector.config.tensors.items()}
    check_weights(vector)
    norms = {}
    for name, stored in vector.deltas(base).items():
        norms[name] = math.sqrt(float(inner_products([stored], base, name)[0, 0]))
    return norms


def inner_products(stored: Sequence[StoredDelta], base: Base, name: str) -> Tensor:
    """Return the matrix (vectors, vectors), float64, of the inner products of one tensor's deltas."""
    products = torch.zeros(len(stored), len(stored), dtype=torch.float64, device="cpu")
    for block in row_blocks(full_index(base.checkpoint[name].shape), _BLOCK):
        decoded: list[list[tuple[float, Delta]]] = []
        for delta in stored:
            # A replaced buffer is not added to the base, so it is no part of the vector's direction.
            is_replaced = delta.replacement is not None
            decoded.append([] if is_replaced else delta.decode(base.checkpoint.lazy(name), block))
        for i, first in enumerate(decoded):
            for j, second in enumerate(decoded[: i + 1]):
                product = _inner(first, second)
                products[i, j] += product
                if i != j:
                    products[j, i] += product
    return products


def _inner(first: Sequence[tuple[float, Delta]], second: Sequence[tuple[float, Delta]]) -> float:
    """Return the inner product of two sums of scaled deltas."""
    products = []
    for scale, delta in first:
        for other_scale, other in second:
            products.append(scale * other_scale * inner(delta, other))
    return sum(products)


def decode(stored: StoredDelta, base: Base, name: str) -> Tensor:
    """Return the delta of one tensor in float32, of the base's shape."""
    shape = base.checkpoint[name].shape
    summands = stored.decode(base.checkpoint.lazy(name), full_index(shape))
    return add_deltas(torch.zeros(shape, dtype=torch.float32, device="cpu"), summands)
