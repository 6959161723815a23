"""The result of a search: the recipe, everything that was measured on the way, and what can be made of it afterwards.

A result is a record that never changes. It can be solved again for another objective, drawn, and used as the start
of another search. On disk it is a recipe's folder with `search_result.json` and the measurements beside the recipe.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dem_hub.errors import ConfigError, NotFoundError
from dem_hub.evaluation.processes import rank
from dem_hub.files.atomic import atomic_folder
from dem_hub.files.folders import RECIPE, check_replaced
from dem_hub.files.names import RECIPE_CONFIG, SEARCH_CACHE, SEARCH_RESULT
from dem_hub.files.replacing import settle
from dem_hub.files.strict_json import FORMAT_VERSION, check_version, read_json
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.records import canonical_name
from dem_hub.search.cross_loss import BASE, Cell, CrossLoss
from dem_hub.search.held_out import FOUND, Acceptance
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.per_group import Refinement
from dem_hub.search.points import Point
from dem_hub.search.problem import Trial
from dem_hub.search.records import from_json, to_json
from dem_hub.search.solve.local_model import LocalModel
from dem_hub.search.solve.newton import best_point
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.region import Region

Bounds = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Reweighted:
    """Coefficients for another objective, and the losses to expect: calculated from statistics, not measured."""

    coefficients: Mapping[str, float]
    losses: Mapping[str, float]
    value: float
    config: DEMConfig


@dataclass(frozen=True)
class SearchResult:
    """The result of [`search_coefficients`].

    All of it is about one coefficient a vector, except `refinement`, the search by groups of tensors. Where that is
    kept, the recipe has its coefficients.

    Args:
        config ([`DEMConfig`]): The recipe.
        method (`str`): Name of the strategy.
        best ([`Trial`]): The trial that is used.
        trials (`tuple[Trial, ...]`): All trials, in order.
        objective ([`Objective`]): What was minimised.
        bounds (`tuple[tuple[float, float], ...]`): Lower and upper bound of each coefficient.
        num_forward (`float`): Cost in forward passes over the search data.
        seconds (`float`): Time that the search took.
        tokens (`Mapping[str, int]`): Scored tokens of each distribution of the search data.
        max_sum (`float`, *optional*): Limit of the sum of the coefficients.
        num_forward_held_out (`float`): Cost in forward passes over the held-out data.
        table ([`CrossLoss`], *optional*): The cross-loss table, as far as it was measured.
        acceptance ([`Acceptance`], *optional*): The comparison on held-out data.
        model ([`LocalModel`], *optional*): The losses around the best point, if the strategy has such a model.
        notes (`tuple[str, ...]`): What the user should know.
        refinement ([`Refinement`], *optional*): The search by groups of tensors.
        cache ([`MeasurementCache`]): Everything measured.
    """

    config: DEMConfig
    method: str
    best: Trial
    trials: tuple[Trial, ...]
    objective: Objective
    bounds: Bounds
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
        lines = [str(self.config.base)]
        lines += [f"  + {value} * {name}" for name, value in self.coefficients.items()]
        lines.append(f"{self.method}: {self.objective.kind} {self.loss:.5f}, in {self.num_forward:.4g} forward passes")
        return "\n".join(lines)

    @property
    def coefficients(self) -> dict[str, Any]:
        """The coefficient of each vector by name: a number, or a number for each group where those are kept."""
        return self.config.coefficients

    @property
    def kept_refinement(self) -> Refinement | None:
        """The search by groups if the recipe has its coefficients, else `None`."""
        if self.refinement is not None and self.refinement.is_kept:
            return self.refinement
        return None

    @property
    def chosen(self) -> Trial:
        """The trial of the recipe's coefficients: `best`, or the best by groups where that is kept."""
        if self.kept_refinement is not None:
            return self.kept_refinement.best
        return self.best

    @property
    def loss(self) -> float:
        """The objective on the search data; for the mean of losses, in nats a token."""
        return self.chosen.value

    @property
    def held_out_loss(self) -> float | None:
        """The objective of the recipe's coefficients on held-out data."""
        if self.kept_refinement is not None:
            return self.kept_refinement.held_out_loss
        if self.acceptance is not None:
            return self.acceptance.contenders[self.acceptance.chosen].value
        return None

    @property
    def baselines(self) -> dict[str, float]:
        """The objective of each baseline on held-out data, by label; to be compared with `held_out_loss`."""
        if self.acceptance is None:
            return {}
        contenders = self.acceptance.contenders
        return {label: contender.value for label, contender in contenders.items() if label != FOUND}

    @property
    def mixing_ratio(self) -> dict[str, float]:
        """The shares in which to mix the vectors' data to train on all of it.

        They are proportional to the coefficients; a negative one counts as 0.
        """
        positive = {}
        for name, value in zip(self.coefficients, self.best.coefficients, strict=True):
            positive[name] = max(value, 0.0)
        total = sum(positive.values())
        if not total:
            return {}
        return {name: value / total for name, value in positive.items()}

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
        """Return the best coefficients for another objective, from the statistics at hand, without a forward pass.

        Args:
            objective (`str`, *optional*): `mean`, `worst` or `improvement`. By default that of the search.
            weights (`Mapping[str, float]`, *optional*): Weights by distribution; 0 leaves one out. By default those
                of the search.
            bounds (*optional*): Bounds of all coefficients, or by vector. By default those of the search.
            max_sum (`float`, *optional*): Limit of the sum of the coefficients. By default that of the search.
            without (`Sequence[str]`): Vectors that get the coefficient 0.

        Returns:
            [`Reweighted`]: Coefficients, and the losses to expect. The further they are from the search's own, the
                less accurate they are.

        Raises:
            `ConfigError`: The method left no statistics, or a name is none of this search.
        """
        if self.model is None:
            raise ConfigError(
                f"method='{self.method}' leaves no statistics to solve again. Search with 'gauss_newton' or "
                "'quadratic'."
            )
        pairs = self._bounds_with(bounds, without)
        chosen = Objective(
            objective or self.objective.kind,  # type: ignore[arg-type]  # it refuses what is no kind
            self.objective.weights if weights is None else weights,
        )
        base_losses = self._base_losses() if chosen.kind == "improvement" else None
        region = Region.of(pairs, self.max_sum if max_sum is None else max_sum)
        point = best_point(self.model, chosen, region, base_losses).tolist()
        coefficients = dict(zip(self.model.names, point, strict=True))
        losses = self.model.losses(point)
        config = self.config.with_coefficients(coefficients)
        return Reweighted(coefficients, losses, chosen.value(losses, base_losses), config)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw the objective over the trials, and the perplexity of each distribution before and after.

        See [`dem_hub.plotting.plot_search`].

        Args:
            path (`str` or `os.PathLike`): The picture; its suffix decides the format.

        Returns:
            `Path`: The path.
        """
        from dem_hub.plotting import plot_search

        before = None
        if self.table is not None and BASE in self.table.cells:
            before = self._base_losses()
        return plot_search([trial.value for trial in self.trials], before, self.chosen.losses, path)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, with_logits: bool = False, exist_ok: bool = False
    ) -> None:
        """Write the recipe, and beside it everything that the search has measured.

        Args:
            save_directory (`str` or `os.PathLike`): The folder. It is also a recipe's, for
                [`DEMModel.from_pretrained`].
            with_logits (`bool`, defaults to `False`): Whether to write the logits too (gigabytes). With them a new
                vector costs one forward pass.
            exist_ok (`bool`, defaults to `False`): Whether a recipe or result in the folder is replaced.

        Raises:
            `ConfigError`: The folder holds something else, or a recipe and `exist_ok` is not set.
        """
        folder = Path(save_directory)
        if rank() == 0:
            check_replaced(folder, RECIPE, exist_ok=exist_ok)
        # The measurements come first: each is a line or a file of its own, and true whatever comes after it. The
        # recipe and the result take their place together.
        self.cache.save(folder / SEARCH_CACHE, with_logits=with_logits)
        if rank() != 0:
            return  # of several processes, each has logits of its own, and the first one writes what all have
        with atomic_folder(folder, last=RECIPE_CONFIG) as partial:
            self.config.write(partial, folder)
            (partial / SEARCH_RESULT).write_text(json.dumps(_to_file(self), indent=1) + "\n", "utf-8")

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str]) -> "SearchResult":
        """Read a saved result.

        Args:
            folder (`str` or `os.PathLike`): A folder that [`SearchResult.save_pretrained`] wrote.

        Raises:
            `NotFoundError`: The folder has no result.
            `ConfigError`: The result was written by a newer version, or is damaged.
        """
        settle(Path(folder))
        path = Path(folder) / SEARCH_RESULT
        if not path.is_file():
            raise NotFoundError(f"'{folder}' has no {SEARCH_RESULT}: it is no folder of SearchResult.save_pretrained.")
        data = read_json(path, non_finite=True)
        check_version(data, str(path))
        try:
            file = from_json(_File, data, str(path))
            best = _trial_at(file.best, file.trials)
        except ConfigError as error:
            raise ConfigError(f"{path} is not a whole search result. {error} Save it again.") from error
        return cls(
            config=DEMConfig.from_pretrained(folder),
            method=file.method,
            best=best,
            trials=file.trials,
            objective=file.objective,
            bounds=file.bounds,
            num_forward=file.num_forward,
            seconds=file.seconds,
            tokens=file.tokens,
            max_sum=file.max_sum,
            num_forward_held_out=file.num_forward_held_out,
            table=None if file.table is None else CrossLoss(file.table),
            acceptance=file.acceptance,
            model=file.model,
            notes=file.notes,
            refinement=file.refinement,
            cache=MeasurementCache(Path(folder) / SEARCH_CACHE),
        )

    def _base_losses(self) -> dict[str, float]:
        if self.table is None or BASE not in self.table.cells:
            raise ConfigError("The base was not measured in this search, so nothing can be compared with it.")
        return {name: cell.loss for name, cell in self.table.cells[BASE].items()}

    def _bounds_with(
        self, bounds: tuple[float, float] | Mapping[str, tuple[float, float]] | None, without: Sequence[str]
    ) -> list[tuple[float, float]]:
        """Return the search's bounds, with other bounds of all vectors or of some, and 0 for those `without`."""
        assert self.model is not None
        names = self.model.names
        if bounds is None:
            changes = {}
        elif isinstance(bounds, Mapping):
            changes = dict(bounds)
        else:
            changes = dict.fromkeys(names, bounds)
        changes |= dict.fromkeys(without, (0.0, 0.0))
        # A folder may be given by another path than in the search.
        known = {canonical_name(name): name for name in names}
        changes = {known.get(canonical_name(name), name): pair for name, pair in changes.items()}
        unknown = sorted(set(changes) - set(names))
        if unknown:
            raise ConfigError(
                f"This search has no vector {', '.join(map(repr, unknown))}; it has {', '.join(map(repr, names))}."
            )
        pairs = dict(zip(names, self.bounds, strict=True)) | changes
        return [pairs[name] for name in names]


@dataclass(frozen=True, kw_only=True)
class _File:
    """The content of search_result.json: its keys, in order."""

    format_version: int
    best: Point
    trials: tuple[Trial, ...]
    objective: Objective
    bounds: Bounds
    table: Mapping[str, Mapping[str, Cell]] | None
    acceptance: Acceptance | None
    model: LocalModel | None
    notes: tuple[str, ...]
    # A search for whole vectors alone has no such key, as its file had none before there were searches by groups.
    refinement: Refinement | None = None
    method: str
    num_forward: float
    seconds: float
    tokens: Mapping[str, int]
    max_sum: float | None
    num_forward_held_out: float


def _to_file(result: SearchResult) -> dict[str, Any]:
    """Return the JSON data of a result; the recipe and the measurements are in files of their own."""
    file = _File(
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
        method=result.method,
        num_forward=result.num_forward,
        seconds=result.seconds,
        tokens=result.tokens,
        max_sum=result.max_sum,
        num_forward_held_out=result.num_forward_held_out,
    )
    data: dict[str, Any] = to_json(file)
    if file.refinement is None:
        del data["refinement"]
    return data


def _trial_at(point: Point, trials: Sequence[Trial]) -> Trial:
    for trial in trials:
        if trial.coefficients == point:
            return trial
    raise ConfigError(f"Its best point {list(point)} is none of its {len(trials)} trials.")


def _dominates(first: Trial, second: Trial) -> bool:
    """Return whether the first trial is as good on every distribution, and better on one."""
    pairs = [(loss, second.losses[name]) for name, loss in first.losses.items()]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
