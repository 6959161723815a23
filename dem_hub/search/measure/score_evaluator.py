"""A score of the user's own as what a search measures."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.coordinates import Coordinates


class ScoreEvaluator:
    """A caller's `score(model)` as a measure: one loss, called `score`, negative where higher is better.

    Scores are filed in a [`MeasurementCache`] by the function's name, so that a killed search goes on: each function needs a cache of
    its own, or a name of its own. What has no name (a lambda, a partial) is filed for this search alone.
    """

    def __init__(
        self, model: Any, function: Callable[[Any], float], cache: MeasurementCache, *, maximize: bool
    ) -> None:
        self.model, self.function, self.cache, self.sign = model, function, cache, -1.0 if maximize else 1.0
        self.coordinates = Coordinates(model)
        self.names = self.coordinates.names
        name = getattr(function, "__qualname__", "")
        self._label = name if name and "<lambda>" not in name else uuid.uuid4().hex
        self._paid: set[str] = set()

    @property
    def num_forward(self) -> float:
        """Calls of the score, whether made now or before a kill; an earlier search's are free."""
        return float(len(self._paid))

    def losses(self, point: Sequence[float]) -> dict[str, float]:
        """The score there; the same point is not scored twice."""
        key = f"call {self._label} {self.coordinates.key(point)} {self.coordinates.place}"
        if key not in self.cache:
            self.coordinates.move_to(point)
            self.cache.put(key, float(self.function(self.model)))
        if not self.cache.is_free(key):
            self._paid.add(key)
        return {"score": self.sign * self.cache[key]}
