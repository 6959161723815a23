"""What is known from before a search: coefficients to begin at, and measurements that need not be made again."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dem_hub.files.names import SEARCH_RESULT
from dem_hub.merging.coefficients import level
from dem_hub.merging.config import DEMConfig
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.points import Point
from dem_hub.search.result import SearchResult

Earlier = SearchResult | DEMConfig | str | os.PathLike[str]


@dataclass(frozen=True)
class EarlierSearch:
    """What is known from before: coefficients by name, and a cache."""

    coefficients: Mapping[str, float]
    cache: MeasurementCache
    has_logits: bool = False

    @classmethod
    def of(cls, earlier: Earlier | None) -> "EarlierSearch":
        """Read what the caller names."""
        if earlier is None:
            return cls({}, MeasurementCache())
        if isinstance(earlier, str | os.PathLike):
            folder = Path(earlier)
            saved = (folder / SEARCH_RESULT).is_file()
            earlier = SearchResult.from_pretrained(folder) if saved else DEMConfig.from_pretrained(earlier)
        if isinstance(earlier, SearchResult):
            known = dict(zip(earlier.coefficients, earlier.best.coefficients, strict=True))
            return cls(known, earlier.cache, earlier.cache.has_logits)
        return cls({name: level(value) for name, value in earlier.coefficients.items()}, MeasurementCache())

    def start(self, names: Sequence[str]) -> Point | None:
        """The known coefficients; a new vector begins at their mean."""
        known = [self.coefficients[name] for name in names if name in self.coefficients]
        if not known:
            return None
        return tuple(self.coefficients.get(name, sum(known) / len(known)) for name in names)

    def unchanged(self, names: Sequence[str]) -> Point | None:
        """The known coefficients, and none of a new vector."""
        return (
            tuple(self.coefficients.get(name, 0.0) for name in names)
            if any(name in self.coefficients for name in names)
            else None
        )
