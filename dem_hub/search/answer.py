"""The answer of a search: the best trial, and what has taken its place because held-out data says that it is better.

A baseline may (`held_out.py`), coefficients for groups of tensors (`per_group.py`), and RegMean vectors (`regmean.py`).
"""

from dataclasses import dataclass, replace

from dem_hub.defaults import Granularity
from dem_hub.search.held_out import Acceptance, accept, baseline_points, best_common_point
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from dem_hub.search.per_group import Refinement, refine
from dem_hub.search.points import Point
from dem_hub.search.problem import Problem, Trial
from dem_hub.search.regmean import RegMeanOutcome, compare_regmean
from dem_hub.search.session import Session
from dem_hub.search.solve.local_model import LocalModel
from dem_hub.search.solve.newton import common_point
from dem_hub.search.solve.region import common_bounds


@dataclass(frozen=True)
class Answer:
    """The answer of a search, how it compares on held-out data, and notes for the user."""

    best: Trial
    acceptance: Acceptance | None = None
    refinement: Refinement | None = None
    regmean: RegMeanOutcome | None = None
    notes: tuple[str, ...] = ()


def accept_answer(session: Session, local_model: LocalModel | None) -> Answer:
    """Compare the best trial with the baselines on held-out data, if there is any of each distribution."""
    problem = session.problem
    held_out_evaluator = session.held_out
    if held_out_evaluator is None:
        return Answer(problem.best)
    missing = []
    for name, windows in held_out_evaluator.data.items():
        if not windows:
            missing.append(f"'{name}' ({sum(problem.loss_evaluator.tokens[name])} tokens to search on)")
    if missing:
        reason = f"there is none of {', '.join(missing)}"
        # Where there was something to hold out and none of it was, that was asked for, and needs no explanation.
        searched_windows = problem.loss_evaluator.data.values()
        if len(missing) == len(searched_windows) and all(len(windows) > 1 for windows in searched_windows):
            reason = "nothing was held out"
        note = f"Not compared with baselines on held-out data: {reason}. What was found is returned as it is."
        return Answer(problem.best, notes=(note,))

    problem.progress.expect_rest(held_out_evaluator.ledger.cost)
    names = problem.evaluator.names
    common = _best_common_point(problem, held_out_evaluator, local_model)
    baselines = baseline_points(names, common, session.earlier.unchanged(names))
    inside = {label: point for label, point in baselines.items() if problem.is_inside(point)}
    accepted = accept(held_out_evaluator, problem.objective, problem.best.coefficients, inside)
    if accepted.is_found:
        return Answer(problem.best, accepted)
    chosen = accepted.contenders[accepted.chosen]
    return Answer(problem.evaluate(chosen.coefficients), accepted, notes=(accepted.note(),))


def _best_common_point(
    problem: Problem, held_out_evaluator: LossEvaluator, local_model: LocalModel | None
) -> Point | None:
    """Return the best common coefficient on held-out data as a point, or `None` if the region has no such point."""
    low, high = common_bounds(problem.region)
    if problem.count < 2 or low > high:
        return None
    # The search's statistics say where to begin.
    if local_model is not None:
        guess = float(common_point(local_model, problem.objective, problem.region, problem.base_losses)[0])
    else:
        guess = sum(problem.best.coefficients) / problem.count
    return best_common_point(held_out_evaluator, problem.objective, problem.region, guess)


def refine_answer(session: Session, answer: Answer, granularity: Granularity) -> Answer:
    """Search by groups, if that is asked for and there is held-out data to accept the answer on."""
    if session.held_out is None or granularity == "model":
        return answer
    if answer.acceptance is None:
        note = (
            f"Coefficients by {granularity} were not looked for: held-out data of each distribution must accept them."
        )
        return replace(answer, notes=(*answer.notes, note))
    refinement, notes = refine(session.problem, session.held_out, answer.best, granularity)
    return replace(answer, refinement=refinement, notes=(*answer.notes, *notes))


def try_regmean(session: Session, answer: Answer, own: tuple[str, ...]) -> Answer:
    """Compare RegMean vectors with the answer, if there is held-out data to accept them on.

    Args:
        session ([`Session`]): The search.
        answer ([`Answer`]): Its answer, one coefficient a vector.
        own (`tuple[str, ...]`): The own distribution of each vector.
    """
    if session.held_out is None or answer.acceptance is None:
        note = "RegMean vectors were not made: held-out data of each distribution must accept them."
        return replace(answer, notes=(*answer.notes, note))
    session.problem.progress.step("RegMean vectors")
    table = session.complete_table(session.held_out)
    outcome, warnings = compare_regmean(session.model, session.problem, session.held_out, table, answer.best, own)
    return replace(answer, regmean=outcome, notes=(*answer.notes, *warnings, outcome.note()))
