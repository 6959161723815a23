"""RegMean in a search: vectors that are made from its own passes, against the coefficients that it found.

The input statistics come from cells of the cross-loss table, so that RegMean costs one pass over the held-out data.
There its vectors, at 1 each, are compared with the search's answer by the rule for all rivals (`held_out.py`).
"""

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dem_hub.codecs.registry import encoder_from_name
from dem_hub.files.distinct_names import distinct_names
from dem_hub.files.scratch import scratch_folder
from dem_hub.input_statistics.statistics_file import InputStatistics
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.opening import record_of
from dem_hub.merging.publishing import VECTORS
from dem_hub.merging.records import HERE
from dem_hub.search.cross_loss import BASE, CrossLoss
from dem_hub.search.held_out import FOUND, Acceptance, Contender, Measured, accept_measured
from dem_hub.search.measure.coordinates import Coordinates
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from dem_hub.search.points import all_at
from dem_hub.search.problem import Problem, Trial
from dem_hub.transformations.regmean import RegMean
from dem_hub.transformations.thin_data import thin_data
from dem_hub.transformations.transformation import transform
from dem_hub.vectors.vector import DistributionVector

if TYPE_CHECKING:
    from dem_hub.models.loading import MergedModel

# Label of the contender. It is a key of search_result.json and must stay as it is.
REGMEAN = "regmean"

# How RegMean vectors are stored that are no product of two factors, as in [`dem_hub.regmean`].
_CODEC = "auto"


class _TemporaryFolder:
    """A folder that is deleted with this object."""

    def __init__(self) -> None:
        with ExitStack() as stack:
            self.path = stack.enter_context(scratch_folder())
            weakref.finalize(self, stack.pop_all().close)


@dataclass(frozen=True)
class RegMeanOutcome:
    """What came of RegMean: its vectors at 1 each against the search's own answer, the plain DEM, on held-out data.

    `own` is the distribution of each vector, `plain` the recipe of the plain DEM, and `num_forward_held_out` what the
    comparison cost. `recipe` is that of the RegMean vectors, which are temporary until the result is saved; a result
    that was read from a folder has it as its own recipe.
    """

    own: Mapping[str, str]
    plain: DEMConfig
    acceptance: Acceptance
    num_forward_held_out: float
    recipe: DEMConfig | None = field(default=None, compare=False)
    files: object = field(default=None, compare=False, repr=False)

    @property
    def is_kept(self) -> bool:
        """True if the RegMean vectors are better on held-out data by more than chance."""
        return not self.acceptance.is_found

    @property
    def contender(self) -> Contender:
        """The RegMean vectors on the held-out data; `difference` is negative where they are better."""
        return self.acceptance.contenders[REGMEAN]

    @property
    def plain_loss(self) -> float:
        """The objective of the plain DEM on the held-out data."""
        return self.acceptance.contenders[FOUND].value

    @property
    def trial(self) -> Trial:
        """The RegMean vectors as a trial. Its losses are those on the held-out data, the only ones that were run."""
        return Trial(self.contender.coefficients, self.contender.losses, self.contender.value)

    def note(self) -> str:
        """Return what came of it, for the user."""
        verdict = "kept"
        if not self.is_kept:
            verdict = f"not kept, as that is not more than {self.acceptance.limit}"
        return (
            f"RegMean vectors, each at 1, gain {-self.contender.difference:.4f} nats over the plain DEM on held-out "
            f"data (standard error {self.contender.error:.4f}; {self.contender.value:.4f} and {self.plain_loss:.4f}): "
            f"{verdict}."
        )


def compare_regmean(
    model: "MergedModel",
    problem: Problem,
    held_out: LossEvaluator,
    table: CrossLoss,
    found: Trial,
    own: Sequence[str],
) -> tuple[RegMeanOutcome, list[str]]:
    """Make RegMean vectors, and compare them with the search's answer on the held-out data.

    Args:
        model (`MergedModel`): The model of the search. It is left with its own recipe.
        problem ([`Problem`]): The search, whose evaluator gathers input statistics.
        held_out ([`LossEvaluator`]): Measures losses on the held-out data.
        table ([`CrossLoss`]): What each vector gains on its own distribution, if it has been measured.
        found ([`Trial`]): The search's answer, one coefficient a vector.
        own (`Sequence[str]`): The own distribution of each vector.

    Returns:
        `tuple`: The [`RegMeanOutcome`], and warnings for the user.
    """
    names = problem.loss_evaluator.names
    config = model.dem.config.with_coefficients(dict(zip(names, found.coefficients, strict=True)))
    files = _TemporaryFolder()
    statistics = _statistics(problem.loss_evaluator, table, own)
    opened, warnings = _make_vectors(model, statistics, config, files.path)
    measured = {FOUND: Measured.at(held_out, found.coefficients)}
    with model.dem.lent(opened):
        evaluator = held_out.at(Coordinates(model))
        measured[REGMEAN] = Measured.at(evaluator, all_at(1.0, len(names)))
    outcome = RegMeanOutcome(
        own=dict(zip(names, own, strict=True)),
        # The dtype is that of the search; a recipe without one merges into the base's own.
        plain=replace(config, dtype=None),
        acceptance=accept_measured(held_out, problem.objective, measured),
        num_forward_held_out=evaluator.num_forward,
        recipe=replace(opened.recipe, dtype=None),
        files=files,
    )
    return outcome, warnings


def save_beside(recipe: DEMConfig, folder: Path) -> DEMConfig:
    """Write the vectors of a recipe into its folder, and return the recipe that finds them there.

    Args:
        recipe ([`DEMConfig`]): A recipe of vectors on this machine.
        folder (`Path`): The folder that the recipe will be in.
    """
    names = distinct_names([Path(record.repo_id, record.subfolder) for record in recipe.vectors])
    records = []
    for record, parts in zip(recipe.vectors, names, strict=True):
        subfolder = "/".join([VECTORS, *parts])
        DistributionVector.from_pretrained(record.source).save_pretrained(folder / subfolder)
        records.append(replace(record, repo_id=HERE, subfolder=subfolder))
    return replace(recipe, vectors=tuple(records))


def _statistics(evaluator: LossEvaluator, table: CrossLoss, own: Sequence[str]) -> dict[str, InputStatistics]:
    """Return the input statistics of each vector on its own distribution, with its gain there if that is known."""
    found = {}
    base = table.cells.get(BASE)
    for vector, statistics, distribution in zip(evaluator.names, evaluator.own_statistics(), own, strict=True):
        alone = table.cells.get(vector)
        gain = None
        if base is not None and alone is not None:
            gain = base[distribution].loss - alone[distribution].loss
        found[vector] = replace(statistics, gain=gain)
    return found


def _make_vectors(
    model: "MergedModel", statistics: Mapping[str, InputStatistics], config: DEMConfig, folder: Path
) -> tuple[OpenedRecipe, list[str]]:
    """Make RegMean vectors in a folder; return their recipe, which is like `config` otherwise, and warnings."""
    opened = model.dem.open()
    architecture = opened.base.architecture
    assert architecture is not None  # the statistics were gathered with it
    transformed = transform(
        opened.base,
        opened.vectors,
        RegMean(tuple(statistics.values()), architecture),
        encoder_from_name(_CODEC, {}),
        torch.device("cpu"),
        # The bases were compared when the model was loaded.
        allow_base_mismatch=True,
    )
    vectors = []
    for vector, parts in zip(transformed, distinct_names(list(map(Path, statistics))), strict=True):
        place = folder / "-".join(parts)
        vector.save_pretrained(place)
        vectors.append(DistributionVector.from_pretrained(place))
    records = tuple(record_of(vector, 1.0, opened.base) for vector in vectors)
    recipe = replace(config, vectors=records)
    return OpenedRecipe(recipe, opened.base, tuple(vectors)), thin_data(architecture, statistics)
