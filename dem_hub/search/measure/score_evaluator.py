"""The evaluator of a search for a caller's own score: a function of a model, in place of losses on data."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.coordinates import Coordinates
from dem_hub.search.measure.ledger import Ledger
from dem_hub.search.progress import Progress


@dataclass(frozen=True)
class Score:
    """The name of a score, and its direction; trials have a loss, which is the negative of a score to maximize."""

    name: str
    direction: Literal["maximize", "minimize"]

    @property
    def higher_is_better(self) -> bool:
        """True if the score is maximized."""
        return self.direction == "maximize"

    @property
    def better(self) -> str:
        """What a better score is: higher or lower."""
        return "higher" if self.higher_is_better else "lower"

    def own(self, loss: float) -> float:
        """Return the score that a loss stands for, with its own sign."""
        # Adding 0 makes 0 of -0.
        return (-loss if self.higher_is_better else loss) + 0.0


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
        progress ([`Progress`], *optional*): Is told what runs.
    """

    def __init__(
        self,
        model: Any,
        function: Callable[[Any], float],
        cache: MeasurementCache,
        *,
        maximize: bool,
        progress: Progress | None = None,
    ) -> None:
        self.model = model
        self.function = function
        self.cache = cache
        self.sign = -1.0 if maximize else 1.0
        self.score = Score(_shown_name(function), "maximize" if maximize else "minimize")
        self.progress = progress or Progress()
        self.coordinates = Coordinates(model)
        self.names = self.coordinates.names
        self._label = _label(function)
        self.ledger = Ledger(cache, self.progress)

    @property
    def num_forward(self) -> float:
        """The number of calls of the score. If this search was killed and goes on, the calls before that count, too;
        calls of an earlier search, whose result this one resumes from, do not.
        """
        return float(self.ledger.cost)

    @property
    def mark(self) -> str:
        """The beginning of the keys of this score's measurements."""
        return f"call {self._label}"

    @property
    def pass_size(self) -> int:
        """What the bar advances by for one call."""
        return 1

    @property
    def question(self) -> list[str]:
        """The question that is measured: the vectors in their order, how they are merged into what, and the score."""
        score = f"{self._label} {self.sign}"
        return [*self.coordinates.keys, self.coordinates.merge_settings, score]

    def losses(self, point: Sequence[float]) -> dict[str, float]:
        """Return the score at a point as a loss. A point is scored once."""
        key = self.coordinates.cache_key(self.mark, point)
        if key not in self.cache:
            self.progress.mixture(point, self.names, self.score.name)
            self.coordinates.move_to(point)
            self.cache.put(key, float(self.function(self.model)))
            self.progress.ran(1)
        self.ledger.pay(key, 1)
        return {"score": self.sign * self.cache[key]}


def _shown_name(function: Callable[[Any], float]) -> str:
    """Return the name of a function as people call it; `score` if it has none."""
    name = getattr(function, "__name__", "score")
    return "score" if name == "<lambda>" else str(name)


def _label(function: Callable[[Any], float]) -> str:
    """Return the name of a function, or a random one if it has none that a later process would find again."""
    name = getattr(function, "__qualname__", "")
    if not name or "<lambda>" in name:
        return uuid.uuid4().hex
    return str(name)
