"""The evaluator of a search for a caller's own score: a function of a model, in place of losses on data."""

import uuid
from collections.abc import Callable, Sequence
from typing import Any

from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.coordinates import Coordinates


class ScoreEvaluator:
    """A caller's `score(model)` as one loss, which is called `score` and is negative if higher scores are better.

    Scores are kept in a [`MeasurementCache`] by the name of the function, so that a killed search goes on. Two
    functions of one name need two caches. A function without a name (a lambda, a partial) is kept for this search
    alone.

    Args:
        model (`MergedModel`): A model with its recipe. It is left at the point that was measured last.
        function (`Callable`): Returns the score of a model.
        cache ([`MeasurementCache`]): Where scores are kept.
        maximize (`bool`): Whether a higher score is better.
    """

    def __init__(
        self, model: Any, function: Callable[[Any], float], cache: MeasurementCache, *, maximize: bool
    ) -> None:
        self.model = model
        self.function = function
        self.cache = cache
        self.sign = -1.0 if maximize else 1.0
        self.coordinates = Coordinates(model)
        self.names = self.coordinates.names
        self._label = _label(function)
        self._paid: set[str] = set()

    @property
    def num_forward(self) -> float:
        """The number of calls of the score. If this search was killed and goes on, the calls before that count, too;
        calls of an earlier search, whose result this one resumes from, do not.
        """
        return float(len(self._paid))

    @property
    def question(self) -> list[str]:
        """The question that is measured: the vectors in their order, how they are merged into what, and the score."""
        score = f"{self._label} {self.sign}"
        return [*self.coordinates.keys, self.coordinates.merge_settings, score]

    def losses(self, point: Sequence[float]) -> dict[str, float]:
        """Return the score at a point as a loss. A point is scored once."""
        key = self.coordinates.cache_key(f"call {self._label}", point)
        if key not in self.cache:
            self.coordinates.move_to(point)
            self.cache.put(key, float(self.function(self.model)))
        if not self.cache.is_free(key):
            self._paid.add(key)
        return {"score": self.sign * self.cache[key]}


def _label(function: Callable[[Any], float]) -> str:
    """Return the name of a function, or a random one if it has none that a later process would find again."""
    name = getattr(function, "__qualname__", "")
    if not name or "<lambda>" in name:
        return uuid.uuid4().hex
    return str(name)
