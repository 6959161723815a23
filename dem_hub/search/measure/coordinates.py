"""What the numbers of a point stand for: the coefficients of a model's vectors, or of groups of their tensors.

Here a point becomes a model, and a name in a cache. A point that is the same for all groups of each vector has the name that it has without
groups, so that what was measured for whole vectors is known.
"""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

from dem_hub.merging.coefficients import Coefficient

if TYPE_CHECKING:
    from dem_hub.models.loading import MergedModel

_Value = TypeVar("_Value")


class Coordinates:
    """The coefficients of a merged model, in order: of each vector, or of each group of it where there are `groups`, each vector's own.

    `keys` are the vectors' hashes, and `place` is all else that a merge depends on.
    """

    def __init__(self, model: "MergedModel", groups: Sequence[Sequence[str]] = ()) -> None:
        config = model.dem.config
        self.model, self.vectors = model, tuple(model.dem.coefficients)
        self.groups = tuple(map(tuple, groups)) or ((),) * len(self.vectors)
        self._hashes = _unique([str(record.sha256 or record.repo_id)[:16] for record in config.vectors])
        self.names, self.keys = self._each(self.vectors, " "), self._each(self._hashes)
        self.place = f"{config.base.fingerprint} {model.dtype} {config.rounding} {config.rounding_seed}"

    def coefficients(self, point: Sequence[float]) -> dict[str, Coefficient]:
        """The point as a recipe has it."""
        each = zip(self.vectors, self.groups, self._parts(point), strict=True)
        return {vector: dict(zip(groups, part, strict=True)) if groups else part[0] for vector, groups, part in each}

    def spread(self, values: Sequence[_Value]) -> tuple[_Value, ...]:
        """What each vector has, for each of its coordinates."""
        return tuple(value for value, groups in zip(values, self.groups, strict=True) for _ in groups or ("",))

    def move_to(self, point: Sequence[float]) -> None:
        """Merge the model for this point."""
        wanted = self.coefficients(point)
        if self.model.dem.coefficients != wanted:
            self.model.dem.set_coefficients(wanted, only_changed=any(self.groups))  # most groups stay as they are

    def key(self, point: Sequence[float]) -> str:
        """The point by the vectors' hashes, whatever their order; what has coefficient 0 is not in it."""
        pairs: list[tuple[str, float]] = []
        for name, groups, part in zip(self._hashes, self.groups, self._parts(point), strict=True):
            whole = len(set(part)) == 1
            pairs += (
                [(name, part[0])]
                if whole
                else [(f"{name}[{group}]", value) for group, value in zip(groups, part, strict=True)]
            )
        return ",".join(sorted(f"{name}={value!r}" for name, value in pairs if value))

    def _each(self, names: Sequence[str], space: str = "") -> tuple[str, ...]:
        each = (
            [f"{name}{space}[{group}]" for group in groups] or [name]
            for name, groups in zip(names, self.groups, strict=True)
        )
        return tuple(name for own in each for name in own)

    def _parts(self, point: Sequence[float]) -> list[list[float]]:
        """The values of each vector."""
        values = iter(map(float, point))
        return [list(islice(values, len(groups) or 1)) for groups in self.groups]


def _unique(keys: Sequence[str]) -> tuple[str, ...]:
    """The same vector named twice is two coordinates all the same."""
    return tuple(f"{key}.{keys[:place].count(key)}" if key in keys[:place] else key for place, key in enumerate(keys))
