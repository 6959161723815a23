"""How vectors relate: their norms, tensor by tensor, and their cosines. Read from the compact parts; nothing is multiplied out."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dem_hub.checkpoints.base_model import Base
from dem_hub.codecs.component import StoredDelta
from dem_hub.codecs.delta import inner
from dem_hub.numerics.slices import count_elements, full_index, row_blocks
from dem_hub.vectors.vector import DistributionVector

_BLOCK = 1 << 22


@dataclass(frozen=True)
class Comparison:
    """The norm of each vector; their cosines, `cosines[i][j]`, -1 to 1, 0 where one of them is zero; and their overlaps.

    `overlaps[i][j]`, 0 to 1, is the share of elements in tensors that both change, of those in tensors that either changes.
    """

    names: tuple[str, ...]
    norms: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    overlaps: tuple[tuple[float, ...], ...]


def compare(vectors: Sequence[DistributionVector], base: Base, names: Sequence[str] | None = None) -> Comparison:
    """Compare vectors of one base.

    Args:
        vectors (`Sequence[DistributionVector]`): any number.
        base ([`Base`]): the base they were taken from.
        names (`Sequence[str]`, *optional*): what to call them; their own names by default.

    Raises:
        `BaseMismatchError`, `AdapterError`: see [`DistributionVector.deltas`].
    """
    from huggingface_hub.utils import tqdm

    deltas = [vector.deltas(base) for vector in vectors]
    count = len(vectors)
    products = torch.zeros(count, count, dtype=torch.float64)
    for name in tqdm(sorted(set().union(*deltas)), desc="Comparing", unit="tensor", delay=1):
        products += _products([stored.get(name, StoredDelta()) for stored in deltas], base, name)
    norms = [_norm(vector, float(products[i, i])) for i, vector in enumerate(vectors)]
    cosines = tuple(tuple(_cosine(products, norms, i, j) for j in range(count)) for i in range(count))
    called = tuple(names) if names is not None else tuple(vector.name for vector in vectors)
    return Comparison(
        called, tuple(norms), cosines, tuple(tuple(_overlap(one, two, base) for two in deltas) for one in deltas)
    )


def tensor_norms(vector: DistributionVector, base: Base) -> dict[str, float]:
    """The Frobenius norm of each tensor's delta, by the base's key: as measured at extraction, or of a LoRA from its factors.

    Args:
        vector ([`DistributionVector`]): any.
        base ([`Base`]): the base it was taken from.
    """
    if vector.config is not None:
        return {name: record.norm for name, record in vector.config.tensors.items()}
    return {
        name: math.sqrt(float(_products([stored], base, name)[0, 0])) for name, stored in vector.deltas(base).items()
    }


def _norm(vector: DistributionVector, squares: float) -> float:
    """Of what was kept of the delta, as measured at extraction: the noise that a codec adds would count as length."""
    if vector.config is not None:
        squares = sum(record.norm**2 * record.projection for record in vector.config.tensors.values())
    return math.sqrt(max(squares, 0.0))


def _cosine(products: torch.Tensor, norms: Sequence[float], i: int, j: int) -> float:
    """<first, second> of the decoded vectors, right in the mean, over their true lengths."""
    if not norms[i] or not norms[j]:
        return 0.0
    return 1.0 if i == j else min(1.0, max(-1.0, float(products[i, j]) / (norms[i] * norms[j])))


def _overlap(first: Mapping[str, StoredDelta], second: Mapping[str, StoredDelta], base: Base) -> float:
    """The share of elements in tensors that both change."""
    both, either = (
        sum(count_elements(base.checkpoint[name].shape) for name in names)
        for names in (set(first) & set(second), set(first) | set(second))
    )
    return both / either if either else 0.0


def _products(stored: Sequence[StoredDelta], base: Base, name: str) -> torch.Tensor:
    """The inner products of one tensor's deltas; replaced buffers are no part of a vector's direction."""
    products = torch.zeros(len(stored), len(stored), dtype=torch.float64)
    for block in row_blocks(full_index(base.checkpoint[name].shape), _BLOCK):
        decoded = [
            [] if delta.replacement is not None else delta.decode(base.checkpoint.lazy(name), block) for delta in stored
        ]
        for i, first in enumerate(decoded):
            for j, second in enumerate(decoded[: i + 1]):
                value = sum(a * b * inner(x, y) for a, x in first for b, y in second)
                products[i, j] += value
                if i != j:
                    products[j, i] += value
    return products
