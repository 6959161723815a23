"""What the numbers of a point stand for: the coefficients of a merged model's vectors. Here a point becomes a model, and a name in a store."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dem_hub.loading import MergedModel


class Coordinates:
    """The coefficients of a model's vectors, in order; `keys` are the vectors' hashes, and `place` is all else that a merge depends on."""

    def __init__(self, model: "MergedModel") -> None:
        config = model.dem.config
        self.model = model
        self.names = tuple(model.dem.coefficients)
        self.keys = _unique([str(record.sha256 or record.repo_id)[:16] for record in config.vectors])
        self.place = f"{config.base.fingerprint} {model.dtype} {config.rounding} {config.rounding_seed}"

    def move_to(self, point: Sequence[float]) -> None:
        """Merge the model for this point."""
        wanted = dict(zip(self.names, map(float, point), strict=True))
        if self.model.dem.coefficients != wanted:
            self.model.dem.set_coefficients(wanted)

    def key(self, point: Sequence[float]) -> str:
        """The point by the vectors' hashes, whatever their order; vectors with coefficient 0 are not in it."""
        return ",".join(sorted(f"{key}={float(value)!r}" for key, value in zip(self.keys, point, strict=True) if value))


def _unique(keys: Sequence[str]) -> tuple[str, ...]:
    """The same vector named twice is two coordinates all the same."""
    return tuple(f"{key}.{keys[:place].count(key)}" if key in keys[:place] else key for place, key in enumerate(keys))
