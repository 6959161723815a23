"""DARE: of each vector random elements, rescaled so that the sum stays right on average.

    dropped_i = delta_i / density where a random number is below the density, 0 elsewhere

Which elements stay is decided by a hash of the vector, the tensor and the position, so that the same vectors always
give the same result, on every device. The codec `random` stores a vector in this way without an index; this
transformation gives any codec.

Source: Yu, Yu, Yu, Huang and Li, *Language Models are Super Mario: Absorbing Abilities from Homologous Models as a
Free Lunch*, ICML 2024.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dem_hub.codecs.delta import Delta
from dem_hub.files.plain_numbers import plain
from dem_hub.files.strict_json import check_whole
from dem_hub.hub.references import VectorSource
from dem_hub.numerics.noise import Noise, random_bits
from dem_hub.numerics.slices import full_index, row_blocks
from dem_hub.transformations.density import check_density
from dem_hub.transformations.transformation import TensorDeltas, transform_named
from dem_hub.vectors.vector import DistributionVector

# Numbers that 16 random bits are.
_BITS = 1 << 16

# Elements that are drawn at a time. Chosen by hand, not measured.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class Dare:
    """The transformation with the share of the elements that stays, and the seed that decides which."""

    name: ClassVar[str] = "dare"
    density: float
    seed: int

    def __post_init__(self) -> None:
        """Refuse a density that keeps nothing, and a seed that cannot be recorded."""
        object.__setattr__(self, "density", plain(self.density))
        object.__setattr__(self, "seed", plain(self.seed))
        check_density(self.density)
        check_whole(self.seed, "seed")

    @property
    def settings(self) -> Mapping[str, Any]:
        """Both numbers."""
        return {"density": self.density, "seed": self.seed}

    def delta(self, place: int, deltas: TensorDeltas) -> Delta:
        """Return one vector's delta with most elements dropped; see [`Transformation.delta`]."""
        return Delta(
            dense=drop(deltas.read_dense(place), self.density, self.seed, f"{deltas.hashes[place]} {deltas.key}")
        )


def drop(delta: Tensor, density: float, seed: int, name: str) -> Tensor:
    """Return a delta whose elements stay with a probability of `density`, divided by it, and are 0 otherwise.

    Args:
        delta (`Tensor`): Of any shape, float32.
        density (`float`): The probability, in steps of 2^-16, by which the kept elements are divided.
        seed (`int`): Decides with `name` and the position of an element whether it stays.
        name (`str`): The vector and the tensor.
    """
    limit = max(1, round(density * _BITS))
    kept = torch.empty_like(delta)
    for block in row_blocks(full_index(delta.shape), _BLOCK):
        part = block if block else ...
        noise = Noise.of(seed, name, block, tuple(delta.shape), delta.device)
        columns = noise.columns
        bits = random_bits(noise.keys, columns.start, columns.stop)
        kept[part] = delta[part] * (bits < limit).reshape(delta[part].shape) * (_BITS / limit)
    return kept


def dare(
    base: str | os.PathLike[str] | VectorSource,
    vectors: Sequence[str | VectorSource],
    *,
    density: float = 0.5,
    seed: int = 0,
    codec: str = "auto",
    device: str | torch.device | None = None,
) -> dict[str, DistributionVector]:
    """Return vectors of which most elements are dropped at random, and the others scaled up.

    Args:
        base (`str`, `os.PathLike` or [`VectorSource`]): Hub id or folder of the base.
        vectors (`Sequence[str]`): Hub ids or folders of the vectors.
        density (`float`, defaults to 0.5): Share of the elements that stays.
        seed (`int`, defaults to 0): Decides which.
        codec (`str`, defaults to `"auto"`): How to store the deltas, none of which is a product of factors any more.
        device (`str` or `torch.device`, *optional*): Where it is computed; the CPU by default.

    Returns:
        `dict[str, DistributionVector]`: The transformed vectors, by the names of the originals. Their files are
        temporary until they are saved.

    Raises:
        `ConfigError`: The density is not above 0 and at most 1, the seed has more than 64 bits, there are no vectors, or
            one is named twice.
        `NotFoundError`: The base or a vector is not found.
        `BaseMismatchError`, `AdapterError`: A vector does not fit the base.

    Example:

    ```python
    >>> from dem_hub.transformations.dare import dare
    >>> vectors = dare(base_folder, [vector_folder], density=0.5, codec="exact")
    >>> vectors[vector_folder].config.transformation["density"]
    0.5

    ```
    """
    return transform_named(base, vectors, Dare(density, seed), codec, device)
