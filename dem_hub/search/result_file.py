"""The file `search_result.json`: its keys, in order.

The recipe and the measurements are in files of their own beside it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.errors import ConfigError
from dem_hub.files.strict_json import FORMAT_VERSION
from dem_hub.merging.config import DEMConfig
from dem_hub.search.cross_loss import Cell
from dem_hub.search.held_out import Acceptance
from dem_hub.search.measure.score_evaluator import Score
from dem_hub.search.per_group import Refinement
from dem_hub.search.points import Point
from dem_hub.search.problem import Trial
from dem_hub.search.records import to_json
from dem_hub.search.regmean import RegMeanOutcome
from dem_hub.search.solve.local_model import LocalModel
from dem_hub.search.solve.objective import Objective

if TYPE_CHECKING:
    from dem_hub.search.result import SearchResult


@dataclass(frozen=True)
class RegMeanRecord:
    """What came of RegMean; `plain` is the recipe of the plain DEM as JSON data."""

    own: Mapping[str, str]
    acceptance: Acceptance
    num_forward_held_out: float
    plain: Mapping[str, Any]

    def outcome(self, path: Path) -> RegMeanOutcome:
        """Return the outcome that the record is of, from the file at `path`."""
        plain = DEMConfig.from_dict(self.plain, f"{path}, plain", path.parent)
        return RegMeanOutcome(self.own, plain, self.acceptance, self.num_forward_held_out)


@dataclass(frozen=True, kw_only=True)
class ResultFile:
    """The content of search_result.json: its keys, in order."""

    format_version: int
    best: Point
    trials: tuple[Trial, ...]
    objective: Objective
    bounds: tuple[tuple[float, float], ...]
    table: Mapping[str, Mapping[str, Cell]] | None
    acceptance: Acceptance | None
    model: LocalModel | None
    notes: tuple[str, ...]
    # A search for whole vectors alone has no such key, as its file had none before there were searches by groups.
    refinement: Refinement | None = None
    # Likewise one without RegMean.
    regmean: RegMeanRecord | None = None
    # Likewise one of losses.
    score: Score | None = None
    method: str
    num_forward: float
    seconds: float
    tokens: Mapping[str, int]
    max_sum: float | None
    num_forward_held_out: float

    def __post_init__(self) -> None:
        """Refuse parts that are of different numbers of coefficients."""
        count = len(self.best)
        counts = {len(self.bounds), *(len(trial.coefficients) for trial in self.trials)}
        if self.model is not None:
            counts.add(len(self.model.names))
        if counts - {count}:
            raise ConfigError(
                f"The best point has {count} coefficients, and other parts have {sorted(counts - {count})}."
            )

    @property
    def best_trial(self) -> Trial:
        """The trial at the best point.

        Raises:
            `ConfigError`: There is none.
        """
        for trial in self.trials:
            if trial.coefficients == self.best:
                return trial
        raise ConfigError(f"Its best point {list(self.best)} is none of its {len(self.trials)} trials.")


def to_file(result: "SearchResult", folder: Path) -> dict[str, Any]:
    """Return the JSON data of a result that is written to a folder."""
    regmean = None
    if result.regmean is not None:
        outcome = result.regmean
        plain = outcome.plain.to_dict(folder)
        regmean = RegMeanRecord(outcome.own, outcome.acceptance, outcome.num_forward_held_out, plain)
    file = ResultFile(
        format_version=FORMAT_VERSION,
        best=result.best.coefficients,
        trials=result.trials,
        objective=result.objective,
        bounds=result.bounds,
        table=None if result.table is None else result.table.cells,
        acceptance=result.acceptance,
        model=result.model,
        notes=result.notes,
        refinement=result.refinement,
        regmean=regmean,
        score=result.score,
        method=result.method,
        num_forward=result.num_forward,
        seconds=result.seconds,
        tokens=result.tokens,
        max_sum=result.max_sum,
        num_forward_held_out=result.num_forward_held_out,
    )
    data: dict[str, Any] = to_json(file)
    for name in ("refinement", "regmean", "score"):
        if data[name] is None:
            del data[name]
    return data
