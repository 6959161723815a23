"""What a search says before it begins: what it will do, what that costs, and what it goes on from."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from dem_hub.files.sizes import format_size
from dem_hub.search.held_out import usual_passes
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from dem_hub.search.measure.score_evaluator import ScoreEvaluator
from dem_hub.search.session import Session


@contextmanager
def outlined(session: Session, method: str) -> Iterator[None]:
    """Show the progress of a search that runs in this context, after its outline.

    Args:
        session ([`Session`]): The search.
        method (`str`): Name of its strategy.
    """
    progress = session.problem.progress
    later = 0
    if session.held_out is not None:
        later = usual_passes(session.problem.count) * session.held_out.pass_size
    plural = "" if session.problem.count == 1 else "s"
    opening = f"Search for {session.problem.count} coefficient{plural} with {method}"
    evaluator = session.evaluator
    with ExitStack() as stack:
        stack.enter_context(progress.shown(opening, _costs(session, method), evaluator.pass_size, later))
        known = session.cache.count_own(_marks(session))
        if known:
            progress.say(f"Resumed: {known} measurements of this search are known from '{session.cache.folder}'.")
        if isinstance(evaluator, LossEvaluator):
            stack.enter_context(progress.watching(session.model))
        yield


def _marks(session: Session) -> list[str]:
    """Return what only keys of this search's measurements have in them: hashes of its data, or the name of its score."""
    if isinstance(session.evaluator, ScoreEvaluator):
        return [session.evaluator.mark]
    marks = list(session.evaluator.hashes.values())
    if session.held_out is not None:
        marks += session.held_out.hashes.values()
    return marks


def _costs(session: Session, method: str) -> str:
    """Return what a pass of the search is, and what comes on top of its passes."""
    evaluator = session.evaluator
    if isinstance(evaluator, ScoreEvaluator):
        return f"calls of {evaluator.score.name}."
    tokens = f"{evaluator.pass_size:,} tokens of {', '.join(evaluator.data)}"
    text = f"forward passes over {tokens}"
    if session.held_out is not None and session.held_out.pass_size:
        passes = usual_passes(session.problem.count)
        text += f", then some {passes} over {session.held_out.pass_size:,} held-out tokens"
        text += ", and one more if a baseline is better"
    text += "."
    if method == "gauss_newton":
        text += f" Beside the model, logits take {format_size(evaluator.logit_size)} of memory"
        if session.cache.folder is not None:
            until = "" if session.cache.keep_logits else " until the search ends"
            text += f", and of the disk in '{session.cache.folder}'{until}"
        text += "."
    return text
