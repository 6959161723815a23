"""The result of a search: the recipe, everything that was measured on the way, and what can be made of it afterwards.

A result is a record that never changes. It can be solved again for another objective, drawn, and used as the start
of another search. On disk it is a recipe's folder with `search_result.json` and the measurements beside the recipe.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.defaults import THEME, Theme
from dem_hub.errors import ConfigError, NotFoundError
from dem_hub.evaluation.processes import rank
from dem_hub.files.atomic import atomic_folder
from dem_hub.files.folders import RECIPE, check_replaced
from dem_hub.files.names import RECIPE_CONFIG, SEARCH_CACHE, SEARCH_RESULT
from dem_hub.files.replacing import settle
from dem_hub.files.strict_json import check_version, read_json
from dem_hub.merging.config import DEMConfig
from dem_hub.search.cross_loss import BASE, CrossLoss
from dem_hub.search.held_out import FOUND, Acceptance
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.score_evaluator import Score
from dem_hub.search.per_group import Refinement
from dem_hub.search.problem import Trial
from dem_hub.search.records import from_json
from dem_hub.search.regmean import RegMeanOutcome, save_beside
from dem_hub.search.report import report
from dem_hub.search.result_file import ResultFile, to_file
from dem_hub.search.reweighting import Bounds, Reweighted, solve_again
from dem_hub.search.solve.local_model import LocalModel
from dem_hub.search.solve.objective import Objective

if TYPE_CHECKING:
    from dem_hub.plotting.picture import Picture
    from dem_hub.search.pictures import PictureKind

# Name of the search's own answer among the baselines of RegMean vectors that are kept.
PLAIN = "plain"


@dataclass(frozen=True)
class SearchResult:
    """The result of [`search_coefficients`].

    All of it is about one coefficient a vector, except `refinement`, the search by groups of tensors, and `regmean`.
    Where the first is kept, the recipe has its coefficients. Where RegMean vectors are kept, the recipe is of them,
    each at 1; they are temporary until the result is saved.

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
        regmean ([`RegMeanOutcome`], *optional*): RegMean vectors against these coefficients.
        score ([`Score`], *optional*): Name and direction of a score; the losses of trials are then its values, negated
            if a higher score is better.
        cache ([`MeasurementCache`]): Everything measured.
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
    regmean: RegMeanOutcome | None = None
    score: Score | None = None
    cache: MeasurementCache = field(default_factory=MeasurementCache, compare=False, repr=False)

    def __str__(self) -> str:
        return report(self).text()

    def _repr_html_(self) -> str:
        return report(self).html()

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
    def kept_regmean(self) -> RegMeanOutcome | None:
        """What came of RegMean if the recipe is of its vectors, else `None`."""
        if self.regmean is not None and self.regmean.is_kept:
            return self.regmean
        return None

    @property
    def plain(self) -> DEMConfig:
        """The recipe of the vectors that were searched: `config`, unless that is of RegMean vectors."""
        if self.kept_regmean is not None:
            return self.kept_regmean.plain
        return self.config

    @property
    def chosen(self) -> Trial:
        """The trial of the recipe: `best`, or the best by groups, or RegMean vectors where these are kept.

        The losses of RegMean vectors are those on the held-out data.
        """
        if self.kept_regmean is not None:
            return self.kept_regmean.trial
        if self.kept_refinement is not None:
            return self.kept_refinement.best
        return self.best

    @property
    def loss(self) -> float:
        """The objective on the search data; for the mean of losses, in nats a token.

        RegMean vectors that are kept were run over the held-out data alone, and this is their objective there.
        """
        return self.chosen.value

    @property
    def held_out_loss(self) -> float | None:
        """The objective of the recipe on held-out data."""
        if self.kept_regmean is not None:
            return self.kept_regmean.contender.value
        if self.kept_refinement is not None:
            return self.kept_refinement.held_out_loss
        if self.acceptance is not None:
            return self.acceptance.contenders[self.acceptance.chosen].value
        return None

    @property
    def baselines(self) -> dict[str, float]:
        """The objective of each baseline on held-out data, by label; to be compared with `held_out_loss`.

        Where RegMean vectors are kept, the plain DEM is a baseline, too.
        """
        if self.acceptance is None:
            return {}
        contenders = self.acceptance.contenders
        values = {label: contender.value for label, contender in contenders.items() if label != FOUND}
        if self.kept_regmean is not None:
            values[PLAIN] = self.kept_regmean.plain_loss
        return values

    @property
    def base_losses(self) -> dict[str, float] | None:
        """The losses of the base on the data of `chosen`, as far as they were measured."""
        if self.kept_regmean is not None:
            return self._held_out_base_losses()
        return self.searched_base_losses

    @property
    def searched_base_losses(self) -> dict[str, float] | None:
        """The losses of the base on the data of the search; `None` if it was not measured there."""
        if self.table is None or BASE not in self.table.cells:
            return None
        return {name: cell.loss for name, cell in self.table.cells[BASE].items()}

    def _held_out_base_losses(self) -> dict[str, float] | None:
        if self.acceptance is None or BASE not in self.acceptance.contenders:
            return None
        return dict(self.acceptance.contenders[BASE].losses)

    @property
    def mixing_ratio(self) -> dict[str, float]:
        """The shares in which to mix the vectors' data to train on all of it.

        They are proportional to the coefficients; a negative one counts as 0.
        """
        positive = {}
        for name, value in zip(self.plain.coefficients, self.best.coefficients, strict=True):
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
        bounds: Bounds | None = None,
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
            without (`Sequence[str]`): Vectors that get the coefficient 0. Vectors may be called by the last parts of
                their names, as in the printed result.

        Returns:
            [`Reweighted`]: Coefficients, and the losses to expect. The further they are from the search's own, the
                less accurate they are.

        Raises:
            `ConfigError`: The method left no statistics.
            `CoefficientError`: A name is of no vector of this search.
        """
        return solve_again(self, objective, weights, bounds, max_sum, without)

    def plot(
        self,
        kind: "PictureKind" = "losses",
        path: str | os.PathLike[str] | None = None,
        *,
        axes: tuple[str, str] | None = None,
        theme: Theme = THEME,
    ) -> "Picture":
        """Draw a picture of the search. A notebook shows it.

        Args:
            kind (`str`, defaults to `"losses"`): `losses`, of all models on held-out data; `coefficients`, with their
                uncertainty; `landscape`, the expected loss over two coefficients; `front`, two distributions against
                each other; or `trials`.
            path (`str` or `os.PathLike`, *optional*): The file to write: `.png`, `.svg` or `.pdf`.
            axes (`tuple[str, str]`, *optional*): Two vectors for `landscape`, by default those with the largest
                coefficients; two distributions for `front`, by default the first two.
            theme (`str`, defaults to `"light"`): `light` or `dark`.

        Returns:
            `matplotlib.figure.Figure`: The picture.

        Raises:
            `ConfigError`: There is no such picture, or the search left no quadratics for it.
            `CoefficientError`: A name is of no vector of this search.
            `MissingDependencyError`: matplotlib is not installed (extra `plot`).
        """
        from dem_hub.search.pictures import draw

        return draw(self, kind, axes, theme).saved(path)

    def plot_all(self, folder: str | os.PathLike[str], *, theme: Theme = THEME) -> list[Path]:
        """Draw every picture for which the search left the numbers, as PNG and as SVG.

        Args:
            folder (`str` or `os.PathLike`): The folder; it is created if it does not exist. Pictures of the same name
                are replaced.
            theme (`str`, defaults to `"light"`): `light` or `dark`.

        Returns:
            `list[Path]`: The files.
        """
        from dem_hub.search.pictures import draw_all

        return draw_all(self, Path(folder), theme)

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *, with_logits: bool = False, exist_ok: bool = False
    ) -> None:
        """Write the recipe, and beside it everything that the search has measured.

        RegMean vectors that are kept are written into `vectors`, where the recipe finds them.

        Args:
            save_directory (`str` or `os.PathLike`): The folder. It is also a recipe's, for
                [`DEMModel.from_pretrained`].
            with_logits (`bool`, defaults to `False`): Whether to write the logits too (some 15 kB a token). With them
                a new vector costs one forward pass.
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
        config = self.config
        if self.kept_regmean is not None:
            config = save_beside(config, folder)
        with atomic_folder(folder, last=RECIPE_CONFIG) as partial:
            config.write(partial, folder)
            (partial / SEARCH_RESULT).write_text(json.dumps(to_file(self, folder), indent=1) + "\n", "utf-8")

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
            file = from_json(ResultFile, data, str(path))
            best = file.best_trial
            regmean = None if file.regmean is None else file.regmean.outcome(path)
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
            regmean=regmean,
            score=file.score,
            cache=MeasurementCache(Path(folder) / SEARCH_CACHE),
        )


def _dominates(first: Trial, second: Trial) -> bool:
    """Return whether the first trial is as good on every distribution, and better on one."""
    pairs = [(loss, second.losses[name]) for name, loss in first.losses.items()]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
