"""What the steps of a search share: the model, its measurements, and the search that is under way."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dem_hub.search.cross_loss import CrossLoss
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from dem_hub.search.measure.score_evaluator import ScoreEvaluator
from dem_hub.search.problem import Problem
from dem_hub.search.resumption import EarlierSearch

if TYPE_CHECKING:
    from dem_hub.models.loading import MergedModel


@dataclass(frozen=True)
class Session:
    """Everything that the steps of a search share, once it is loaded; `held_out` is `None` for a score."""

    model: "MergedModel"
    evaluator: ScoreEvaluator | LossEvaluator
    problem: Problem
    held_out: LossEvaluator | None
    earlier: EarlierSearch
    cache: MeasurementCache

    def complete_table(self, held_out: LossEvaluator) -> CrossLoss:
        """Return a cross-loss table with every vector: of the search data if it is there, else of the held-out data."""
        table = CrossLoss.of(self.problem.loss_evaluator)
        if len(table.cells) > self.problem.count:
            return table
        # A strategy need not score each vector alone, but acceptance does.
        return CrossLoss.of(held_out)
