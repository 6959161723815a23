"""Coefficients for groups of tensors: embeddings, attention, MLPs and the rest, or runs of layers.

The groups that a vector changes become coordinates, like vectors. They start at the vector's one coefficient, and a
prior draws them to it, the more strongly the fewer tokens there are. They are kept only if they are better on
held-out data than one coefficient a vector, by more than `ERRORS` standard errors of the difference: more numbers fit
more noise, so they need more evidence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dem_hub.defaults import Granularity
from dem_hub.merging.coefficients import Coefficient
from dem_hub.merging.groups import groups_of, take_apart
from dem_hub.search.held_out import FOUND, Acceptance, Contender, accept
from dem_hub.search.measure.coordinates import Coordinates
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from dem_hub.search.problem import Callback, Problem, Strategy, Trial
from dem_hub.search.solve.region import Region
from dem_hub.search.strategies import choose

if TYPE_CHECKING:
    from dem_hub.models.loading import MergedModel

# Label of the contender with one coefficient a vector. It is a key of search_result.json and must stay as it is.
ONE = "one coefficient a vector"

# Standard errors that the gain on held-out data must exceed. With one error, 12 coefficients found on 250 tokens a
# distribution of SmolLM2-135M were kept for a gain of 0.0009 nats (standard error 0.0006), and lost 0.0018 nats on
# test text. docs/coefficients.md and the tests of this module say the number, too.
ERRORS = 2.0


@dataclass(frozen=True)
class Refinement:
    """The result of a search by groups.

    `coordinates` are the names of its numbers, such as `maths [attention]`; `coefficients` are the best of them by
    vector, as a recipe has them. `trials`, `best`, `num_forward` and `num_forward_held_out` are of this search
    alone. `acceptance` compares it with one coefficient a vector on held-out data.
    """

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
        """One coefficient a vector on the held-out data; its `difference` is what groups gain."""
        return self.acceptance.contenders[ONE]

    @property
    def held_out_loss(self) -> float:
        """The objective on the held-out data."""
        return self.acceptance.contenders[FOUND].value

    @property
    def is_kept(self) -> bool:
        """True if groups gain more than `ERRORS` standard errors on held-out data; never without a standard error."""
        return self.one.difference > ERRORS * self.one.error > 0

    def note(self) -> str:
        """Return what came of the search by groups, for the user."""
        if self.is_kept:
            verdict = "kept"
        elif self.one.error:
            verdict = f"not kept, as that is not more than {ERRORS:g} standard errors"
        else:
            verdict = "not kept, as one window of held-out text has no standard error"
        return (
            f"{len(self.coordinates)} coefficients by {self.granularity} gain {self.one.difference:.4f} nats on "
            f"held-out data (standard error {self.one.error:.4f}) for {self.num_forward:.4g} forward passes: {verdict}."
        )


def changed_groups(model: "MergedModel", granularity: Granularity) -> list[tuple[str, ...]]:
    """Return the groups of tensors that each vector of a merged model changes.

    Groups are made from the tensors of all vectors, so that runs of layers are the same for each. A group that a
    vector does not change would be a coordinate without effect: it would cost forward passes and be reported as if
    it were known.
    """
    opened = model.dem.open()
    # The bases were compared when the model was loaded.
    all_deltas = [vector.deltas(opened.base, allow_base_mismatch=True) for vector in opened.vectors]
    keys = set().union(*all_deltas)
    groups = groups_of(granularity, sorted(keys), opened.base)
    changed = []
    for vector, deltas in zip(opened.vectors, all_deltas, strict=True):
        parts = take_apart(deltas, groups, opened.base, vector.name)
        changed.append(tuple(group for group, tensors in parts.items() if tensors))
    return changed


def refine(
    problem: Problem, held_out: LossEvaluator, found: Trial, granularity: Granularity
) -> tuple[Refinement | None, list[str]]:
    """Search by groups, beginning with every group at the coefficient that was found for its vector.

    Args:
        problem ([`Problem`]): The search for whole vectors. Its bounds hold for every group of a vector.
        held_out ([`LossEvaluator`]): Measures losses on the held-out data.
        found ([`Trial`]): The best trial of the search for whole vectors: one coefficient a vector.
        granularity (`str`): `block` or `group`.

    Returns:
        `tuple`: The [`Refinement`], and notes for the user. The refinement is `None` if `max_forward` leaves no
            room for a step, or no vector changes two groups.
    """
    model = problem.loss_evaluator.coordinates.model
    coordinates = Coordinates(model, changed_groups(model, granularity))
    count = len(coordinates.names)
    if count == len(coordinates.vectors):
        return None, [
            f"Coefficients by {granularity} were not looked for: no vector changes two groups, so that they are those "
            "of vectors."
        ]
    left = None if problem.max_forward is None else problem.max_forward - problem.num_forward
    strategy, _ = choose("auto", count)
    if left is not None and left < _least_budget(strategy, count):
        return None, [
            f"max_forward leaves {max(left, 0):g} forward passes, too few to look for {count} coefficients by "
            f"{granularity}."
        ]
    finer = _finer_problem(problem, coordinates, found, left)
    notes = finer.notes_on_tokens()
    start = coordinates.spread(found.coefficients)
    finer.evaluate(start)
    strategy.search(finer)
    best = finer.best
    held_out = held_out.at(coordinates)
    acceptance = accept(held_out, problem.objective, best.coefficients, {ONE: start})
    refinement = Refinement(
        granularity=granularity,
        method=strategy.name,
        coordinates=coordinates.names,
        coefficients=coordinates.coefficients(best.coefficients),
        best=best,
        trials=tuple(finer.trials),
        num_forward=finer.num_forward,
        num_forward_held_out=held_out.num_forward,
        acceptance=acceptance,
    )
    return refinement, [*notes, *finer.notes, refinement.note()]


def _least_budget(strategy: Strategy, count: int) -> float:
    """Return the forward passes that a strategy needs for one step from a known point."""
    if strategy.name == "gauss_newton":
        # The statistics take one pass, and one for each coefficient; the new point is checked.
        return count + 2
    # `gradient` takes a forward pass and a backward pass, which counts two.
    return 3


def _finer_problem(problem: Problem, coordinates: Coordinates, found: Trial, left: float | None) -> Problem:
    """Return the problem whose coordinates are groups; it starts at, and is drawn to, what was found for vectors."""
    start = coordinates.spread(found.coefficients)
    callback = problem.callback
    if callback is not None:
        callback = _numbered_from(len(problem.trials), callback)
    return Problem(
        problem.loss_evaluator.at(coordinates),
        problem.objective,
        Region.of(coordinates.spread(problem.bounds())),
        left,
        start,
        seed=problem.seed,
        callback=callback,
        prior_center=start,
        progress=problem.progress,
    )


def _numbered_from(first: int, callback: Callback) -> Callback:
    """Return a callback that counts trials from `first`."""

    def tell(number: int, trial: Trial) -> None:
        callback(first + number, trial)

    return tell
