"""What a search found, kept so that it can be used, read, drawn, solved again for another wish, saved, and grown."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dem_hub.errors import ConfigError, NotFoundError
from dem_hub.files.atomic import write_text
from dem_hub.files.names import SEARCH_CACHE, SEARCH_RESULT
from dem_hub.files.strict_json import check_version, parse_json
from dem_hub.merging.config import DEMConfig, canonical_name
from dem_hub.search.cross_loss import BASE, Cell, CrossLoss
from dem_hub.search.held_out import FOUND, Acceptance
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.per_group import Refinement
from dem_hub.search.problem import Trial
from dem_hub.search.solve.local_model import LocalModel
from dem_hub.search.solve.newton import best_point
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.region import Region


@dataclass(frozen=True)
class Reweighted:
    """Coefficients for another wish, and the losses that are expected there: from the statistics, measured by nobody."""

    coefficients: Mapping[str, float]
    losses: Mapping[str, float]
    value: float
    config: DEMConfig


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    `config` is the recipe; `best` the trial of its coefficients; `trials` all of them, in order; `table` the cross-loss table;
    `acceptance` the comparison on held-out data; `model` the losses around the best point; `num_forward` the cost in forward passes
    over the search data, and `num_forward_held_out` over the held-out data; `notes` what a user should know. All of these are of one
    coefficient a vector; `refinement` is what was looked for by groups of tensors, and where it is kept, the recipe has it.
    """

    config: DEMConfig
    method: str
    best: Trial
    trials: tuple[Trial, ...]
    objective: Objective
    bounds: tuple[tuple[float, float], ...]
    num_forward: float
    seconds: float
    tokens: Mapping[str, int]
    max_sum: float | None = None
    num_forward_held_out: float = 0.0
    table: CrossLoss | None = None
    acceptance: Acceptance | None = None
    model: LocalModel | None = None
    notes: tuple[str, ...] = ()
    refinement: Refinement | None = None
    cache: MeasurementCache = field(default_factory=MeasurementCache, compare=False, repr=False)

    def __str__(self) -> str:
        found = [f"{self.config.base}", *(f"  + {value} * {name}" for name, value in self.coefficients.items())]
        return "\n".join(
            [*found, f"{self.method}: {self.objective.kind} {self.loss:.5f}, in {self.num_forward:.4g} forward passes"]
        )

    @property
    def coefficients(self) -> dict[str, Any]:
        """The coefficient of each vector, by name: a number, or a number for each group where those are kept."""
        return self.config.coefficients

    @property
    def loss(self) -> float:
        """The objective on the search data; of log-perplexities, in nats a token."""
        return self.chosen.value

    @property
    def chosen(self) -> Trial:
        """The trial of the recipe's coefficients: `best`, or the best by groups where that is kept."""
        return self.refinement.best if self.refinement is not None and self.refinement.is_kept else self.best

    @property
    def baselines(self) -> dict[str, float]:
        """The objective of everything else that was compared, on held-out data, where what was found has `held_out_loss`."""
        found = self.acceptance.contenders if self.acceptance is not None else {}
        return {label: contender.value for label, contender in found.items() if label != FOUND}

    @property
    def held_out_loss(self) -> float | None:
        """The objective of the chosen coefficients on held-out data."""
        if self.refinement is not None and self.refinement.is_kept:
            return self.refinement.acceptance.contenders[FOUND].value
        return self.acceptance.contenders[self.acceptance.chosen].value if self.acceptance is not None else None

    @property
    def mixing_ratio(self) -> dict[str, float]:
        """The shares in which one would mix the vectors' data to train on it together: the coefficients, none below 0, in proportion."""
        positive = {
            name: max(value, 0.0) for name, value in zip(self.coefficients, self.best.coefficients, strict=True)
        }
        total = sum(positive.values())
        return {name: value / total for name, value in positive.items()} if total else {}

    @property
    def pareto(self) -> tuple[Trial, ...]:
        """The trials that no other trial beats on every distribution."""
        return tuple(trial for trial in self.trials if not any(_dominates(other, trial) for other in self.trials))

    def reweight(
        self,
        objective: str | None = None,
        *,
        weights: Mapping[str, float] | None = None,
        bounds: tuple[float, float] | Mapping[str, tuple[float, float]] | None = None,
        max_sum: float | None = None,
        without: Sequence[str] = (),
    ) -> Reweighted:
        """The best coefficients for another wish, from the statistics at hand: no forward pass.

        Args:
            objective (`str`, *optional*): `mean`, `worst` or `improvement`; the search's own by default.
            weights (`Mapping[str, float]`, *optional*): by distribution; 0 leaves one out.
            bounds: of all coefficients, or by vector; the search's own by default.
            max_sum (`float`, *optional*): the most that the coefficients may sum to.
            without (`Sequence[str]`): vectors that get the coefficient 0.

        Returns:
            [`Reweighted`]: with the losses that are expected there. The further from what was found, the less they are to be trusted.

        Raises:
            `ConfigError`: the method left no statistics, or a name is none of this search.
        """
        if self.model is None:
            raise ConfigError(
                f"method='{self.method}' leaves no statistics to solve again. Search with 'gauss_newton' or 'quadratic'."
            )
        names = self.model.names
        by_name = (
            dict(bounds) if isinstance(bounds, Mapping) else dict.fromkeys(names, bounds) if bounds is not None else {}
        )
        known = {canonical_name(name): name for name in names}  # a folder may be named from here
        by_name = {known.get(canonical_name(name), name): pair for name, pair in by_name.items()}
        without = [known.get(canonical_name(name), name) for name in without]
        unknown = sorted({*without, *by_name} - set(names))
        if unknown:
            raise ConfigError(
                f"This search has no vector {', '.join(map(repr, unknown))}; it has {', '.join(map(repr, names))}."
            )
        own = dict(zip(names, self.bounds, strict=True)) | by_name | dict.fromkeys(without, (0.0, 0.0))
        goal = Objective(objective or self.objective.kind, self.objective.weights if weights is None else weights)  # type: ignore[arg-type]
        base = self._base_losses() if goal.kind == "improvement" else None
        region = Region.of([own[name] for name in names], self.max_sum if max_sum is None else max_sum)
        point = best_point(self.model, goal, region, base)
        coefficients = dict(zip(names, point.tolist(), strict=True))
        losses = self.model.losses(point.tolist())
        return Reweighted(coefficients, losses, goal.value(losses, base), self.config.with_coefficients(coefficients))

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw the objective over trials, and each distribution's perplexity before and after; see [`dem_hub.plotting.plot_search`]."""
        from dem_hub.plotting import plot_search

        before = self._base_losses() if self.table is not None and BASE in self.table.cells else None
        return plot_search([trial.value for trial in self.trials], before, self.chosen.losses, path)

    def save_pretrained(self, save_directory: str | os.PathLike[str], *, with_logits: bool = False) -> None:
        """Write the recipe, and beside it everything that the search has measured.

        Args:
            save_directory (`str` or `os.PathLike`): the folder; it is also a recipe's, for [`DEMModel.from_pretrained`].
            with_logits (`bool`): the kept logits too (gigabytes), with which a new vector costs one forward pass.
        """
        folder = Path(save_directory)
        self.config.save_pretrained(folder)
        write_text(folder / SEARCH_RESULT, json.dumps(self._to_dict(), indent=1) + "\n")
        self.cache.save(folder / SEARCH_CACHE, with_logits=with_logits)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> "SearchResult":
        """Read a saved result.

        Raises:
            `NotFoundError`: there is none. `ConfigError`: it was written by a newer version.
        """
        path = Path(folder) / SEARCH_RESULT
        if not path.is_file():
            raise NotFoundError(f"'{folder}' has no {SEARCH_RESULT}: it is no folder of SearchResult.save_pretrained.")
        data = parse_json(path.read_bytes(), str(path))
        check_version(data, str(path))
        try:
            trials = [Trial(tuple(entry["coefficients"]), entry["losses"], entry["value"]) for entry in data["trials"]]
            table = data["table"]
            return cls(
                config=DEMConfig.from_pretrained(folder),
                best=next(trial for trial in trials if list(trial.coefficients) == data["best"]),
                trials=tuple(trials),
                objective=Objective(**data["objective"]),
                bounds=tuple((low, high) for low, high in data["bounds"]),
                table=CrossLoss({m: {n: Cell(**c) for n, c in cells.items()} for m, cells in table.items()})
                if table
                else None,
                acceptance=Acceptance.from_dict(data["acceptance"]) if data["acceptance"] else None,
                model=LocalModel.from_dict(data["model"]) if data["model"] else None,
                refinement=Refinement.from_dict(data["refinement"]) if data.get("refinement") else None,
                notes=tuple(data["notes"]),
                cache=MeasurementCache(Path(folder) / SEARCH_CACHE),
                **{name: data[name] for name in _PLAIN},
            )
        except (KeyError, TypeError, StopIteration) as error:
            raise ConfigError(f"{path} is not a whole search result ({error!r}). Save it anew.") from error

    def _to_dict(self) -> dict[str, Any]:
        return {
            "format_version": 1,
            "best": list(self.best.coefficients),
            "trials": [asdict(trial) for trial in self.trials],
            "objective": asdict(self.objective),
            "bounds": [list(pair) for pair in self.bounds],
            "table": asdict(self.table)["cells"] if self.table is not None else None,
            "acceptance": self.acceptance.to_dict() if self.acceptance is not None else None,
            "model": self.model.to_dict() if self.model is not None else None,
            "notes": list(self.notes),
            **({"refinement": self.refinement.to_dict()} if self.refinement is not None else {}),
            **{name: getattr(self, name) for name in _PLAIN},
        }

    def _base_losses(self) -> dict[str, float]:
        if self.table is None or BASE not in self.table.cells:
            raise ConfigError("The base was not measured in this search, so nothing can be compared with it.")
        return {name: cell.loss for name, cell in self.table.cells[BASE].items()}


_PLAIN = ("method", "num_forward", "seconds", "tokens", "max_sum", "num_forward_held_out")


def _dominates(first: Trial, second: Trial) -> bool:
    """Whether the first is as good on every distribution, and better on one."""
    pairs = [(loss, second.losses[name]) for name, loss in first.losses.items()]
    return all(one <= two for one, two in pairs) and any(one < two for one, two in pairs)
