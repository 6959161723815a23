"""Coefficients for groups of tensors, looked for from those of whole vectors, and kept only where they hold on data that nobody saw.

The groups that a vector changes are coordinates like vectors. They start at the vector's one coefficient and are drawn to it, as strongly as
the tokens are few: a dozen numbers are fitted sooner than they are known. What is found must be better on the held-out data than one
coefficient a vector, by more than two standard errors of the difference: more numbers want more evidence. If not, one it stays.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dem_hub.defaults import Granularity
from dem_hub.merging.coefficients import Coefficient
from dem_hub.merging.groups import groups_of, take_apart
from dem_hub.search.held_out import Acceptance, Contender, accept
from dem_hub.search.measure.coordinates import Coordinates
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from dem_hub.search.problem import Problem, Trial
from dem_hub.search.solve.region import Region
from dem_hub.search.strategies import choose

if TYPE_CHECKING:
    from dem_hub.models.loading import MergedModel

ONE = "one coefficient a vector"
ERRORS = 2.0  # of the gain, that the gain must exceed; one let noise through on SmolLM2-135M at 250 tokens


@dataclass(frozen=True)
class Refinement:
    """What a search by groups found, in `coordinates` such as `maths [attention]`; its cost; and whether it is kept."""

    granularity: str
    method: str
    coordinates: tuple[str, ...]
    coefficients: Mapping[str, Coefficient]
    best: Trial
    trials: tuple[Trial, ...]
    num_forward: float
    num_forward_held_out: float
    acceptance: Acceptance

    @property
    def one(self) -> Contender:
        """One coefficient a vector, on the held-out data; its `difference` is what groups gain."""
        return self.acceptance.contenders[ONE]

    @property
    def is_kept(self) -> bool:
        """Whether what groups gain on held-out data is more than two of its standard errors; never, where it has none."""
        return self.one.difference > ERRORS * self.one.error > 0

    def note(self) -> str:
        """What came of it, for a user."""
        doubt = (
            "that is not more than two errors"
            if self.one.error
            else "one window of held-out text has no standard error"
        )
        verdict = "kept" if self.is_kept else f"not kept, as {doubt}"
        return (
            f"{len(self.coordinates)} coefficients by {self.granularity} gain {self.one.difference:.4f} nats on held-out data (standard error "
            f"{self.one.error:.4f}) for {self.num_forward:.4g} forward passes: {verdict}."
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Refinement":
        """Read what `to_dict` wrote."""
        trials = tuple(Trial(tuple(entry["coefficients"]), entry["losses"], entry["value"]) for entry in data["trials"])
        best = next(trial for trial in trials if list(trial.coefficients) == list(data["best"]["coefficients"]))
        read = {
            "coordinates": tuple(data["coordinates"]),
            "best": best,
            "trials": trials,
            "acceptance": Acceptance.from_dict(data["acceptance"]),
        }
        return cls(**{**data, **read})


def groups_of_each(model: "MergedModel", granularity: Granularity) -> list[tuple[str, ...]]:
    """The groups of each vector of a merged model: of those of all vectors, so that runs of layers are the same, the ones that it changes."""
    opened = model.dem.open()
    deltas = [
        vector.deltas(opened.base, allow_base_mismatch=True) for vector in opened.vectors
    ]  # checked when it was loaded
    groups = groups_of(granularity, sorted({key for each in deltas for key in each}), opened.base)
    parts = [
        take_apart(each, groups, opened.base, vector.name) for vector, each in zip(opened.vectors, deltas, strict=True)
    ]
    return [tuple(group for group, tensors in each.items() if tensors) for each in parts]


def refine(problem: Problem, judge: LossEvaluator, found: Trial, granularity: Granularity) -> Refinement | None:
    """Search by groups from what was found for whole vectors.

    Args:
        problem ([`Problem`]): the search so far; its bounds hold for every group of a vector.
        judge ([`LossEvaluator`]): on held-out data.
        found ([`Trial`]): one coefficient a vector.
        granularity (`str`): `block` or `group`.

    Returns:
        [`Refinement`] or `None`: `None` where `max_forward` leaves no room for a step, or no vector has two groups.
    """
    model = problem.loss_evaluator.coordinates.model
    coordinates = Coordinates(model, groups_of_each(model, granularity))
    if len(coordinates.names) == len(coordinates.vectors):
        problem.notes.append(
            f"Coefficients by {granularity} were not looked for: no vector changes two groups, so that they are those of vectors."
        )
        return None
    measured, held_out = problem.loss_evaluator.at(coordinates), judge.at(coordinates)
    start, bounds = coordinates.spread(found.coefficients), coordinates.spread(problem.bounds())
    left = problem.max_forward - problem.num_forward if problem.max_forward is not None else None
    strategy, _ = choose("auto", len(start))
    if left is not None and left < (len(start) + 2 if strategy.name == "gauss_newton" else 3):
        problem.notes.append(
            f"max_forward leaves {max(left, 0):g} forward passes, too few to look for {len(start)} coefficients by {granularity}."
        )
        return None
    seen, told = len(problem.trials), problem.callback
    callback = (lambda number, trial: told(seen + number, trial)) if told is not None else None
    finer = Problem(
        measured,
        problem.objective,
        Region.of(bounds),
        left,
        start,
        seed=problem.seed,
        callback=callback,
        prior_center=start,
    )
    finer.warn_of_few()
    finer.evaluate(start)
    strategy.search(finer)
    problem.notes += finer.notes
    point = finer.best.coefficients
    accepted = accept(held_out, problem.objective, point, {ONE: start})
    return Refinement(
        granularity,
        strategy.name,
        coordinates.names,
        coordinates.coefficients(point),
        finer.best,
        tuple(finer.trials),
        measured.num_forward,
        held_out.num_forward,
        accepted,
    )
