"""What is shown of the result of a search: in a shell, by `print(result)`, and in a notebook.

Vectors go by their short names, which are accepted wherever a vector is named.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dem_hub.hub.report import Report, Table
from dem_hub.merging.short_names import short_names
from dem_hub.search.cross_loss import BASE, Cell, CrossLoss
from dem_hub.search.held_out import FOUND, IN_WORDS, Acceptance, baseline_points
from dem_hub.search.measure.score_evaluator import Score
from dem_hub.search.points import alone, split_label

if TYPE_CHECKING:
    from dem_hub.search.result import SearchResult

_NEXT = ('Next: result.save_pretrained("my-dem"), then DEMModel.from_pretrained("my-dem").',)


def report(result: "SearchResult", next_steps: Sequence[str] = _NEXT) -> Report:
    """Return coefficients, losses, and how the result was found.

    Args:
        result ([`SearchResult`]): The result.
        next_steps (`Sequence[str]`): What to do with it, the last lines.
    """
    short = Labels(list(result.plain.coefficients))
    names = tuple(result.best.losses)
    parts: list[Table | Sequence[str]] = [_coefficients(result)]
    if result.score is not None:
        parts.append(_scores(result, result.score, short))
    if result.table is not None and result.table.cells:
        parts.append(_searched(result, result.table, short))
    if result.acceptance is not None:
        parts.append(_held_out(result.acceptance, names, result.objective.kind, short))
    verdicts = _verdicts(result, short)
    parts.append([_cost(result), *verdicts])
    notes = [note for note in result.notes if note not in verdicts]
    if notes:
        parts.append([f"Note: {note}" for note in notes])
    return Report(f"Search on {result.config.base}", [*parts, next_steps])


class Labels:
    """The labels of models, such as `base`, `me/maths` and `me/maths alone`, with short names of vectors."""

    def __init__(self, names: Sequence[str]) -> None:
        self.by_name = dict(zip(names, short_names(names), strict=True))

    def __call__(self, label: str) -> str:
        name, rest = split_label(label)
        if not rest and label in IN_WORDS:
            return IN_WORDS[label]
        return self.by_name.get(name, name) + rest

    def of_group(self, coordinate: str) -> str:
        """Return the name of a group of a vector's tensors, such as `me/maths [attention]`."""
        name, bracket, group = coordinate.rpartition(" [")
        return self.by_name.get(name, name) + bracket + group


def _coefficients(result: "SearchResult") -> Table:
    shares = list(result.mixing_ratio.values()) or [0.0] * len(result.coefficients)
    rows: list[tuple[str, ...]] = []
    names = short_names(list(result.coefficients))
    for name, coefficient, share in zip(names, result.coefficients.values(), shares, strict=True):
        if isinstance(coefficient, Mapping):
            rows += [(f"{name} [{group}]", f"{value:+.4f}", "") for group, value in coefficient.items()]
        else:
            rows.append((name, f"{coefficient:+.4f}", f"{share:.3f}"))
    return Table(("vector", "coefficient", "share, for training on a mixture"), rows)


def _scores(result: "SearchResult", score: Score, short: Labels) -> Table:
    """Return the score of the answer and of each baseline, with its own sign."""
    values = {trial.coefficients: trial.value for trial in result.trials}
    points = baseline_points(list(result.coefficients), None)
    rows = []
    for label, point in {FOUND: result.best.coefficients, **points}.items():
        if point in values:
            rows.append((short(label), f"{score.own(values[point]):.5g}"))
    return Table(("model", score.name), rows)


def _searched(result: "SearchResult", table: CrossLoss, short: Labels) -> Table:
    """Return the losses of the answer, the base and each vector alone, in a row each; a column is a distribution."""
    names = tuple(result.best.losses)
    point = result.best.coefficients
    if result.acceptance is not None:  # a baseline may have taken the place of what was found
        point = result.acceptance.contenders[FOUND].coefficients
    found = {trial.coefficients: trial.losses for trial in result.trials}.get(point)
    rows: list[tuple[str, ...]] = []
    if found is not None:
        rows.append((short(FOUND), *(f"{found[name]:.4f}" for name in names)))
    for model, cells in table.cells.items():
        label = model if model == BASE else alone(model)
        rows.append((short(label), *(_with_error(cells[name]) for name in names)))
    return Table(("loss on the search's data (standard error)", *names), rows)


def _with_error(cell: Cell) -> str:
    """Return a loss with its standard error, or with the reason why it has none."""
    error = "one window" if math.isnan(cell.error) else f"{cell.error:.4f}"
    return f"{cell.loss:.4f} ({error})"


def _held_out(acceptance: Acceptance, names: tuple[str, ...], objective: str, short: Labels) -> Table:
    rows = []
    for label, contender in acceptance.contenders.items():
        losses = [f"{contender.losses[name]:.4f}" for name in names]
        difference = ""
        if label != FOUND:
            difference = f"{contender.difference:+.4f} ({contender.error:.4f})"
        rows.append((short(label), *losses, f"{contender.value:.4f}", difference))
    return Table(("held-out loss", *names, objective, f"minus {short(FOUND)} (standard error)"), rows)


def _cost(result: "SearchResult") -> str:
    """Return what the result cost, in a line."""
    trials = "1 trial" if len(result.trials) == 1 else f"{len(result.trials)} trials"
    if result.score is not None:
        value = f"{result.score.name} {result.score.own(result.loss):.5g}, {result.score.better} is better"
        return f"{result.method}: {trials}, {result.num_forward:.4g} calls, {result.seconds:.1f} s; {value}"
    tokens = sum(result.tokens.values())
    text = f"{result.method}: {trials}, {result.num_forward:.4g} forward passes over {tokens} tokens"
    if result.num_forward_held_out:
        text += f" and {result.num_forward_held_out:.3g} over the held-out ones"
    text += f", {result.seconds:.1f} s; objective ({result.objective.kind}) {result.loss:.5f}"
    if result.kept_regmean is not None:
        text += " on the held-out ones"
    return text


def _verdicts(result: "SearchResult", short: Labels) -> list[str]:
    """Return what held-out data said of the answer, of finer coefficients and of RegMean, in a line each."""
    lines = []
    if result.score is not None:
        lines.append("The best of all trials is returned: there is no held-out part of a score.")
    elif result.acceptance is None:
        lines.append("Not compared with baselines on held-out data.")
    else:
        lines.append(result.acceptance.note(short))
    if result.refinement is not None:
        lines.append(result.refinement.note())
    if result.regmean is not None:
        lines.append(result.regmean.note())
        plain = ", ".join(f"{value:+.4f} * {short.by_name[name]}" for name, value in result.plain.coefficients.items())
        lines.append(f"The plain DEM: {plain}")
    return lines
