"""Coordinates of a search: which coefficient of the recipe each number of a point stands for.

There is one coordinate for each vector, or one for each group of a vector's tensors. This module turns a point into a
merged model, and into a key of a cache. A point that has the same value for all groups of each vector has the same
key as without groups, so that what was measured for whole vectors is not measured again.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

from dem_hub.checkpoints.fingerprint import without_bytes
from dem_hub.merging.coefficients import Coefficient

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from dem_hub.models.loading import MergedModel

_Value = TypeVar("_Value")

# Hex digits of a sha256 in a key: 64 bits, which tell all vectors of a search apart.
_HASH_DIGITS = 16

# Keys of a config that do not change what a model computes, or that a key of the cache has elsewhere (the dtype).
_ORIGINS = frozenset({"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version"})


class Coordinates:
    """The coefficients of a merged model, in order.

    `names` are for people and `keys`, which have the vectors' hashes, for a cache; there is one of each for every
    coordinate. `merge_settings` is everything else that a merged model depends on: the base, its config with what the
    caller changed there, the dtype and the rounding.

    Args:
        model (`MergedModel`): A model with its recipe.
        groups (`Sequence[Sequence[str]]`, *optional*): The groups of each vector. Without them, each vector is one
            coordinate.
    """

    def __init__(self, model: "MergedModel", groups: Sequence[Sequence[str]] = ()) -> None:
        config = model.dem.config
        self.model = model
        self.vectors = tuple(model.dem.coefficients)
        self.groups = tuple(map(tuple, groups)) or ((),) * len(self.vectors)
        self._hashes = _number_repeats(
            [str(vector.sha256 or vector.repo_id)[:_HASH_DIGITS] for vector in config.vectors]
        )
        self.names = self._with_groups(self.vectors, " ")
        self.keys = self._with_groups(self._hashes, "")
        # Whether the load that measured hashed all bytes of the base makes no difference.
        base = without_bytes(config.base.fingerprint)
        settings = f"{base} {model.dtype} {config.rounding} {config.rounding_seed}"
        self.merge_settings = f"{settings} {config_digest(model.config)}"

    def coefficients(self, point: Sequence[float]) -> dict[str, Coefficient]:
        """Return a point as the coefficients of a recipe, by vector."""
        coefficients: dict[str, Coefficient] = {}
        for vector, groups, values in zip(self.vectors, self.groups, self._values_by_vector(point), strict=True):
            coefficients[vector] = dict(zip(groups, values, strict=True)) if groups else values[0]
        return coefficients

    def spread(self, values: Sequence[_Value]) -> tuple[_Value, ...]:
        """Return the value of each vector once for each of its coordinates."""
        spread: list[_Value] = []
        for value, groups in zip(values, self.groups, strict=True):
            spread += [value] * (len(groups) or 1)
        return tuple(spread)

    def move_to(self, point: Sequence[float]) -> None:
        """Merge the model, in place, for a point."""
        coefficients = self.coefficients(point)
        if self.model.dem.coefficients != coefficients:
            # With groups, a step changes few tensors: most groups keep their coefficient.
            self.model.dem.set_coefficients(coefficients, only_changed=any(self.groups))

    def key(self, point: Sequence[float]) -> str:
        """Return a point as text, by the hashes of its vectors in sorted order. Coefficients of 0 are left out."""
        pairs: list[tuple[str, float]] = []
        for vector_hash, groups, values in zip(self._hashes, self.groups, self._values_by_vector(point), strict=True):
            if len(set(values)) == 1:
                pairs.append((vector_hash, values[0]))
            else:
                pairs += [(f"{vector_hash}[{group}]", value) for group, value in zip(groups, values, strict=True)]
        return ",".join(sorted(f"{name}={value!r}" for name, value in pairs if value))

    def cache_key(self, kind: str, point: Sequence[float], *data: str) -> str:
        """Return the key of a measurement in a [`MeasurementCache`]. Its form is that of keys on disk.

        Args:
            kind (`str`): What was measured.
            point (`Sequence[float]`): The coefficients it was measured at.
            data (`str`): Hashes of the data it was measured on, and whatever else it depends on.
        """
        return " ".join([kind, self.key(point), *data, self.merge_settings])

    def _with_groups(self, vectors: Sequence[str], separator: str) -> tuple[str, ...]:
        """Return one label for each coordinate: that of its vector, with the group in brackets if there is one."""
        labels: list[str] = []
        for vector, groups in zip(vectors, self.groups, strict=True):
            labels += [f"{vector}{separator}[{group}]" for group in groups] or [vector]
        return tuple(labels)

    def _values_by_vector(self, point: Sequence[float]) -> list[list[float]]:
        values = iter(map(float, point))
        return [list(islice(values, len(groups) or 1)) for groups in self.groups]


def _number_repeats(keys: Sequence[str]) -> tuple[str, ...]:
    """Number repeated keys, so that one vector given twice has two coordinates."""
    numbered = []
    for place, key in enumerate(keys):
        repeats = keys[:place].count(key)
        numbered.append(f"{key}.{repeats}" if repeats else key)
    return tuple(numbered)


def config_digest(config: "PretrainedConfig") -> str:
    """Return a hash of what a model's config says about what the model computes.

    A model with fewer experts to a token, or with another scale of its positions, has other losses at the same weights.
    """
    text = json.dumps(_without_origins(json.loads(config.to_json_string(use_diff=True))), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_HASH_DIGITS]


def _without_origins(values: Any) -> Any:
    """Return JSON data of a config, and of the configs in it, without what tells where a model is from."""
    if isinstance(values, dict):
        return {name: _without_origins(value) for name, value in values.items() if name not in _ORIGINS}
    return values
