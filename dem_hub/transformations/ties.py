"""TIES: of each vector the largest elements, and of these the ones whose sign most vectors agree on.

    trimmed_i = the `density` largest elements of delta_i by magnitude, 0 elsewhere
    sign      = +1 where sum_i weight_i trimmed_i >= 0, else -1
    merged    = sum_i weight_i trimmed_i [sign agrees] / sum_i weight_i [sign agrees]

Each vector becomes its part of that sum, so that the vectors with their weights as coefficients are the merge. What
is published says that TIES rarely beats a plain weighted sum of language models (arXiv 2511.21437: four models of 3
to 8 B, 16 benchmarks); it is here for comparison, and for who comes from mergekit.

Source: Yadav, Tam, Choshen, Raffel and Bansal, *TIES-Merging: Resolving Interference When Merging Models*, NeurIPS
2023; the weights as in mergekit's `ties`.
"""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dem_hub.codecs.delta import Delta
from dem_hub.errors import ConfigError
from dem_hub.files.plain_numbers import plain
from dem_hub.hub.references import VectorSource
from dem_hub.transformations.density import check_density
from dem_hub.transformations.transformation import TensorDeltas, transform_named
from dem_hub.transformations.vector_names import check_vector_names
from dem_hub.vectors.vector import DistributionVector


@dataclass(frozen=True)
class Ties:
    """The transformation with its density, the weight of each vector, and whether the sum is divided by them.

    `density` is one for all vectors, or one for each.
    """

    name: ClassVar[str] = "ties"
    density: float | tuple[float, ...]
    weights: tuple[float, ...]
    normalize: bool = True

    def __post_init__(self) -> None:
        """Refuse a density that keeps nothing."""
        object.__setattr__(self, "density", plain(self.density))
        for density in self._densities:
            check_density(density)
        if len(self._densities) != len(self.weights):
            raise ConfigError(f"There are {len(self._densities)} densities and {len(self.weights)} weights.")

    @property
    def _densities(self) -> tuple[float, ...]:
        if isinstance(self.density, tuple):
            return self.density
        return (self.density,) * len(self.weights)

    @property
    def settings(self) -> Mapping[str, Any]:
        """The numbers; one density if all vectors have the same."""
        density: float | list[float] = list(self._densities)
        if len(set(self._densities)) == 1:
            density = self._densities[0]
        return {"density": density, "weights": list(self.weights), "normalize": self.normalize}

    def delta(self, place: int, deltas: TensorDeltas) -> Delta:
        """Return one vector's part of the merged delta; see [`Transformation.delta`]."""
        trimmed = [trim(deltas.read_dense(other), density) for other, density in enumerate(self._densities)]
        own = trimmed[place]
        total = torch.zeros_like(own)
        for weight, delta in zip(self.weights, trimmed, strict=True):
            total.add_(delta, alpha=weight)
        elected = torch.where(total >= 0, 1.0, -1.0)
        agreed = own * ((own * self.weights[place]).sign() == elected)
        if self.normalize:
            agreed /= self._divisor(trimmed, elected)
        return Delta(dense=agreed)

    def _divisor(self, trimmed: Sequence[Tensor], elected: Tensor) -> Tensor:
        """Return the sum of the weights of the vectors whose sign is the elected one; 1 where that is 0."""
        divisor = torch.zeros_like(elected)
        for weight, delta in zip(self.weights, trimmed, strict=True):
            divisor.add_((delta * weight).sign() == elected, alpha=weight)
        return divisor.masked_fill_(divisor == 0, 1.0)


def trim(delta: Tensor, density: float) -> Tensor:
    """Return a delta with its largest elements by magnitude, and 0 in the place of the others.

    Args:
        delta (`Tensor`): Of any shape, float32.
        density (`float`): The share of elements that is kept, rounded down to a whole number of them, one at least. Of
            elements of one magnitude the first ones are kept: differences of 16-bit checkpoints have many such.
    """
    kept = max(1, int(density * delta.numel()))
    if kept >= delta.numel():
        return delta
    flat = delta.flatten()
    sizes = flat.abs()
    smallest = sizes.topk(kept, sorted=False).values.min()
    is_kept = sizes > smallest
    at_limit = (sizes == smallest).nonzero().flatten()
    is_kept[at_limit[: kept - int(is_kept.sum())]] = True
    return (flat * is_kept).reshape(delta.shape)


def ties(
    base: str | os.PathLike[str] | VectorSource,
    vectors: Sequence[str] | Mapping[str, float],
    *,
    density: float | Sequence[float] = 0.2,
    normalize: bool = True,
    codec: str = "auto",
    device: str | torch.device | None = None,
) -> dict[str, DistributionVector]:
    """Return vectors whose weighted sum is the TIES merge of the originals.

    Args:
        base (`str`, `os.PathLike` or [`VectorSource`]): Hub id or folder of the base.
        vectors (`Mapping[str, float]` or `Sequence[str]`): Hub ids or folders of the vectors, with a weight each; 1 if
            there are none. The merge has these weights as coefficients.
        density (`float` or `Sequence[float]`, defaults to 0.2): Share of each tensor's elements that is kept, as in the
            paper; or one for each vector, in their order.
        normalize (`bool`, defaults to `True`): Whether the sum is divided by the weights of the vectors that agree.
        codec (`str`, defaults to `"auto"`): How to store the deltas, none of which is a product of factors any more.
        device (`str` or `torch.device`, *optional*): Where it is computed; the CPU by default.

    Returns:
        `dict[str, DistributionVector]`: The transformed vectors, by the names of the originals. Their files are
        temporary until they are saved.

    Raises:
        `ConfigError`: The density is not above 0 and at most 1, a weight is not finite, there are no vectors, or one is
            named twice.
        `NotFoundError`: The base or a vector is not found.
        `BaseMismatchError`, `AdapterError`: A vector does not fit the base.

    Example:

    ```python
    >>> from dem_hub.transformations.ties import ties
    >>> vectors = ties(base_folder, {vector_folder: 0.5}, density=0.2)
    >>> vectors[vector_folder].config.transformation["density"]
    0.2

    ```
    """
    check_vector_names(vectors)
    weights = dict(vectors if isinstance(vectors, Mapping) else dict.fromkeys(vectors, 1.0))
    if not all(map(math.isfinite, weights.values())):
        raise ConfigError(f"The weights are {list(weights.values())}; they must be finite numbers.")
    if isinstance(density, Iterable):  # an array is no sequence
        density = tuple(map(float, density))
    transformation = Ties(density, tuple(map(float, weights.values())), normalize)
    return transform_named(base, list(weights), transformation, codec, device)
