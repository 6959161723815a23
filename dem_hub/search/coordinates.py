"""What the numbers of a point stand for: the coefficients of a model's vectors, or of groups of their tensors.

Here a point becomes a model, and a name in a store. A point that is the same for all groups of each vector has the name that it has without
groups, so that what was measured for whole vectors is known.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dem_hub.records import Coefficient

if TYPE_CHECKING:
    from dem_hub.loading import MergedModel


class Coordinates:
    """The coefficients of a merged model, in order: of each vector, or of each of `groups` of each vector.

    `keys` are the vectors' hashes, and `place` is all else that a merge depends on.
    """

    def __init__(self, model: "MergedModel", groups: Sequence[str] = ()) -> None:
        config = model.dem.config
        self.model, self.groups = model, tuple(groups)
        self.vectors = tuple(model.dem.coefficients)
        self._hashes = _unique([str(record.sha256 or record.repo_id)[:16] for record in config.vectors])
        self.names, self.keys = self._each(self.vectors, " "), self._each(self._hashes)
        self.place = f"{config.base.fingerprint} {model.dtype} {config.rounding} {config.rounding_seed}"

    def coefficients(self, point: Sequence[float]) -> dict[str, Coefficient]:
        """The point as a recipe has it."""
        values = list(map(float, point))
        if not self.groups:
            return dict(zip(self.vectors, values, strict=True))
        return {vector: dict(zip(self.groups, part, strict=True)) for vector, part in zip(self.vectors, self._parts(values), strict=True)}

    def move_to(self, point: Sequence[float]) -> None:
        """Merge the model for this point."""
        wanted = self.coefficients(point)
        if self.model.dem.coefficients != wanted:
            self.model.dem.set_coefficients(wanted, only_changed=bool(self.groups))  # most groups stay as they are

    def key(self, point: Sequence[float]) -> str:
        """The point by the vectors' hashes, whatever their order; what has coefficient 0 is not in it."""
        values, pairs = list(map(float, point)), []
        for name, part in zip(self._hashes, self._parts(values), strict=True):
            whole = len(set(part)) == 1
            pairs += [(name, part[0])] if whole else [(f"{name}[{g}]", value) for g, value in zip(self.groups, part, strict=True)]
        return ",".join(sorted(f"{name}={value!r}" for name, value in pairs if value))

    def _each(self, names: Sequence[str], space: str = "") -> tuple[str, ...]:
        return tuple(f"{name}{space}[{group}]" for name in names for group in self.groups) if self.groups else tuple(names)

    def _parts(self, values: list[float]) -> list[list[float]]:
        """The values of each vector."""
        size = len(self.groups) or 1
        return [values[start : start + size] for start in range(0, len(values), size)]


def _unique(keys: Sequence[str]) -> tuple[str, ...]:
    """The same vector named twice is two coordinates all the same."""
    return tuple(f"{key}.{keys[:place].count(key)}" if key in keys[:place] else key for place, key in enumerate(keys))
