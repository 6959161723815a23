"""What a search takes over from an earlier one: coefficients to start from, and measurements that are not made again.

The argument is `resume_from`. A recipe alone gives coefficients; a search result gives its measurements as well.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from dem_hub.errors import ConfigError
from dem_hub.files.names import SEARCH_RESULT
from dem_hub.merging.coefficients import level
from dem_hub.merging.config import DEMConfig
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.points import Point
from dem_hub.search.result import SearchResult

ResumeFrom = SearchResult | DEMConfig | str | os.PathLike[str]


@dataclass(frozen=True)
class EarlierSearch:
    """The knowledge from before a search: coefficients by the name of the vector, and a cache of measurements."""

    coefficients: Mapping[str, float] = field(default_factory=dict)
    cache: MeasurementCache = field(default_factory=MeasurementCache)

    @classmethod
    def of(cls, source: ResumeFrom | None) -> "EarlierSearch":
        """Return what a result, a recipe, or the folder or Hub repository of one says; `None` says nothing."""
        if source is None:
            return cls()
        if isinstance(source, str | os.PathLike):
            source = _read(source)
        if isinstance(source, SearchResult):
            # The trial has one coefficient a vector, also where the recipe has one for each group of tensors.
            coefficients = dict(zip(source.plain.coefficients, source.best.coefficients, strict=True))
            return cls(coefficients, source.cache)
        if source.base_quantized is not None:
            raise ConfigError(
                f"The recipe to resume from adds its vectors to a quantized base ({source.base_quantized}), and a "
                "search adds them to the base as it is. Search without resume_from, and compare the results: dem-hub "
                "check."
            )
        return cls({name: level(value) for name, value in source.coefficients.items()})

    def start(self, names: Sequence[str]) -> Point | None:
        """Return the known coefficients, with their mean for each new vector; `None` if no vector is known."""
        known = [self.coefficients[name] for name in names if name in self.coefficients]
        if not known:
            return None
        mean = sum(known) / len(known)
        return tuple(self.coefficients.get(name, mean) for name in names)

    def unchanged(self, names: Sequence[str]) -> Point | None:
        """Return the known coefficients, with 0 for each new vector; `None` if no vector is known."""
        if not any(name in self.coefficients for name in names):
            return None
        return tuple(self.coefficients.get(name, 0.0) for name in names)


@contextmanager
def keeping(cache: MeasurementCache) -> Iterator[None]:
    """Enclose a search: at its end, logits go that are not to stay. A Ctrl-C says what is kept, and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if cache.folder is None:
            kept = "Nothing is kept. With cache='FOLDER', on the command line --cache FOLDER, a search can go on."
        else:
            kept = f"{len(cache)} measurements are kept in '{cache.folder}': the same search goes on from there."
        # The place where it happened would say nothing to the user.
        raise KeyboardInterrupt(f"stopped by Ctrl-C. {kept}") from None
    cache.finish()


def _read(source: str | os.PathLike[str]) -> SearchResult | DEMConfig:
    """Return the search result of a folder that has one, else the recipe of a folder or Hub repository."""
    if (Path(source) / SEARCH_RESULT).is_file():
        return SearchResult.from_pretrained(source)
    return DEMConfig.from_pretrained(source)
