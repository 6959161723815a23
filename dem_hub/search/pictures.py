"""The pictures of a search: the numbers of a result, given to the functions that draw.

Everything that is drawn stands in the result; only where a picture says "expected" does it come from the quadratics.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import torch

from dem_hub.defaults import THEME, Theme
from dem_hub.errors import ConfigError
from dem_hub.merging.short_names import full_names, short_names
from dem_hub.plotting import (
    Estimate,
    Surface,
    draw_coefficients,
    draw_front,
    draw_landscape,
    draw_losses,
    draw_trials,
    save_all,
)
from dem_hub.search.front import front
from dem_hub.search.held_out import DEM, FOUND, UNIFORM, Acceptance, Contender, baseline_points
from dem_hub.search.landscape import Landscape
from dem_hub.search.per_group import ONE
from dem_hub.search.points import all_at
from dem_hub.search.prediction import UNSURE, Prediction
from dem_hub.search.report import Labels
from dem_hub.search.solve.region import Region
from dem_hub.search.uncertainty import coefficient_errors

if TYPE_CHECKING:
    from dem_hub.plotting.picture import Picture
    from dem_hub.search.result import SearchResult

PictureKind = Literal["losses", "coefficients", "landscape", "front", "trials"]

# Labels of models.
_BY_GROUP = f"{DEM} by group"
_REGMEAN = "RegMean"

# Standard errors to either side that hold 95 %.
_INTERVAL = 1.96

_NATS = "nats a token (lower is better)"

_CELLS = 49  # places of the landscape's grid along an axis


def picture_kinds(result: "SearchResult") -> tuple[PictureKind, ...]:
    """Return the pictures for which a result has the numbers."""
    kinds: list[PictureKind] = ["losses", "coefficients"]
    if result.model is not None and len(result.model.names) > 1:
        kinds.append("landscape")
    if result.model is not None and len(result.model.parts) > 1:
        kinds.append("front")
    return (*kinds, "trials")


def draw(
    result: "SearchResult", kind: PictureKind, axes: tuple[str, str] | None = None, theme: Theme = THEME
) -> "Picture":
    """Draw a picture of a result; see [`SearchResult.plot`]."""
    if kind not in get_args(PictureKind):
        raise ConfigError(f"There is no picture {kind!r}; there are {', '.join(get_args(PictureKind))}.")
    if axes is not None and kind not in ("landscape", "front"):
        raise ConfigError(f"axes={axes!r} are for 'landscape' and 'front', and the picture is {kind!r}.")
    if kind == "losses":
        return _losses(result, theme)
    if kind == "coefficients":
        return _coefficients(result, theme)
    if kind == "landscape":
        return _landscape(result, axes, theme)
    if kind == "front":
        return _front(result, axes, theme)
    return _trials(result, theme)


def draw_all(result: "SearchResult", folder: Path, theme: Theme) -> list[Path]:
    """Draw all pictures into a folder, and return the files; see [`SearchResult.plot_all`]."""
    pictures: dict[str, Picture] = {}
    for kind in picture_kinds(result):
        pictures[kind] = draw(result, kind, theme=theme)
    return save_all(pictures, folder)


def _losses(result: "SearchResult", theme: Theme) -> "Picture":
    short = Labels(list(result.plain.coefficients))
    if result.acceptance is not None and result.score is None:
        return _held_out(result, result.acceptance, short, theme)
    points = baseline_points(list(result.plain.coefficients), None)
    values = {trial.coefficients: trial for trial in result.trials}
    rows = {short(label): values[point] for label, point in points.items() if point in values}
    rows[DEM] = result.best
    if result.score is not None:
        score = result.score
        panels = {score.name: {label: Estimate(score.own(trial.value)) for label, trial in rows.items()}}
        return draw_losses(
            panels,
            chosen=DEM,
            title=f"{score.name} of the models",
            quantity=f"{score.name} ({score.better} is better)",
            higher_is_better=score.higher_is_better,
            theme=theme,
        )
    panels = {}
    if len(result.best.losses) > 1:
        panels[result.objective.kind] = {label: Estimate(trial.value) for label, trial in rows.items()}
    for name in result.best.losses:
        panels[name] = {label: Estimate(trial.losses[name]) for label, trial in rows.items()}
    return draw_losses(
        panels,
        chosen=DEM,
        title="Loss on the data of the search",
        quantity=_NATS,
        note="nothing held out",
        theme=theme,
    )


def _held_out(result: "SearchResult", acceptance: Acceptance, short: Labels, theme: Theme) -> "Picture":
    """Draw every model that was run over the held-out data."""
    rows, chosen = _contenders(result, acceptance, short)
    times = acceptance.errors
    panels: dict[str, dict[str, Estimate]] = {}
    if len(result.best.losses) > 1:
        panels[result.objective.kind] = {label: Estimate(row.value, times * row.error) for label, row in rows.items()}
    for name in result.best.losses:
        panels[name] = {}
        for label, row in rows.items():
            panels[name][label] = Estimate(row.losses[name], times * row.errors.get(name, math.nan))
    note = ""
    if any(each.has_interval for panel in panels.values() for each in panel.values()):
        note = f"intervals: difference from the DEM ± {times:.2f} standard errors"
    return draw_losses(
        panels, chosen=chosen, reference=DEM, title="Loss on held-out data", quantity=_NATS, note=note, theme=theme
    )


def _contenders(result: "SearchResult", acceptance: Acceptance, short: Labels) -> tuple[dict[str, Contender], str]:
    """Return all models that were run over the held-out data, by label, and the label of the one that is returned."""
    rows: dict[str, Contender] = {}
    for label, contender in acceptance.contenders.items():
        if label != FOUND:
            rows[short(label)] = contender
    rows[DEM] = acceptance.contenders[FOUND]
    chosen = DEM if acceptance.is_found else short(acceptance.chosen)
    later: dict[str, Contender] = {}
    if result.refinement is not None:
        compared = result.refinement.acceptance.contenders
        # The difference of the two has one error, whichever of them is subtracted.
        one = compared[ONE]
        later[_BY_GROUP] = replace(compared[FOUND], error=one.error, errors=one.errors)
        if result.refinement.is_kept:
            chosen = _BY_GROUP
    if result.regmean is not None:
        later[_REGMEAN] = result.regmean.contender
        if result.regmean.is_kept:
            chosen = _REGMEAN
    if not acceptance.is_found:
        # They were compared with the baseline that has replaced the DEM, and not with the DEM.
        later = {label: replace(contender, error=math.nan, errors={}) for label, contender in later.items()}
    return {**rows, **later}, chosen


def _coefficients(result: "SearchResult", theme: Theme) -> "Picture":
    names = short_names(list(result.plain.coefficients))
    kept = result.kept_refinement
    if kept is not None:
        found = {name: Estimate(value) for name, value in zip(kept.coordinates, kept.best.coefficients, strict=True)}
        short = Labels(list(result.plain.coefficients))
        found = {short.of_group(name): estimate for name, estimate in found.items()}
        return draw_coefficients(
            found, others={}, bounds=[_hull(result)] * len(found), title="Coefficients by group", theme=theme
        )
    point = result.best.coefficients
    others = {}
    if result.acceptance is not None and not result.acceptance.is_found:
        # The intervals are around the minimum of the losses, and this is where it is.
        point = result.acceptance.contenders[FOUND].coefficients
        label = Labels(list(result.plain.coefficients))(result.acceptance.chosen)
        others[f"returned ({label})"] = result.best.coefficients
    if len(names) > 1:
        others[UNIFORM] = all_at(1 / len(names), len(names))
    errors: Sequence[float | None] = [None] * len(names)
    if result.model is not None and result.score is None:
        region = Region.of(result.bounds, result.max_sum)
        errors = coefficient_errors(
            result.model, result.objective, result.tokens, point, region, result.searched_base_losses
        )
    found = {}
    for name, value, error in zip(names, point, errors, strict=True):
        found[name] = Estimate(value, None if error is None else _INTERVAL * error)
    note = ""
    if any(each.has_interval for each in found.values()):
        note = f"intervals: 95 %, for {sum(result.tokens.values()):,} tokens and the curvature of the loss"
    title = "Coefficients" if result.kept_regmean is None else "Coefficients of the plain DEM"
    return draw_coefficients(found, others=others, bounds=result.bounds, title=title, note=note, theme=theme)


def _landscape(result: "SearchResult", axes: tuple[str, str] | None, theme: Theme) -> "Picture":
    prediction = _prediction(result)
    names = list(result.plain.coefficients)
    short = short_names(names)
    if len(names) < 2:
        raise ConfigError("A landscape is over two coefficients, and this search has one.")
    point = result.best.coefficients
    across, up = _two_vectors(names, point, axes)
    low, high = _hull(result)
    levels = torch.linspace(low, high, _CELLS, dtype=torch.float64, device="cpu")
    landscape = Landscape.of(prediction, point, (across, up), levels)
    values, edges = landscape.values, landscape.edges
    quantity = f"expected loss ({result.objective.kind}), nats a token"
    score = result.score
    if score is not None:
        quantity = f"expected {score.name} ({score.better} is better)"
        if score.higher_is_better:
            values, edges = -values, [-edge for edge in reversed(edges)]
    elif result.objective.kind == "improvement":
        quantity = "expected loss / loss of the base"
    doubt: list[list[float]] = []
    if prediction.growth is not None and score is None:
        doubt = prediction.errors(landscape.points).reshape(len(levels), -1).tolist()
    rest = [f"{short[place]} {value:.2f}" for place, value in enumerate(point) if place not in (across, up)]
    title = "The expected loss over two coefficients" if score is None else f"{score.name} over two coefficients"
    if rest:
        title += f"\nat {', '.join(rest)}"
    return draw_landscape(
        Surface(levels.tolist(), values.tolist(), edges, doubt, UNSURE),
        axes=(short[across], short[up]),
        trials=[(trial.coefficients[across], trial.coefficients[up]) for trial in result.trials],
        found=(point[across], point[up]),
        quantity=quantity,
        title=title,
        higher_is_better=score is not None and score.higher_is_better,
        theme=theme,
    )


def _front(result: "SearchResult", axes: tuple[str, str] | None, theme: Theme) -> "Picture":
    prediction = _prediction(result)
    known = list(prediction.model.parts)
    if len(known) < 2:
        raise ConfigError("A front is of two distributions, and this search has one.")
    first, second = axes or (known[0], known[1])
    unknown = [name for name in (first, second) if name not in known]
    if unknown or first == second:
        raise ConfigError(f"axes={axes!r} must be two of the distributions, {', '.join(map(repr, known))}.")
    short = Labels(list(result.plain.coefficients))
    losses = {trial.coefficients: (trial.losses[first], trial.losses[second]) for trial in result.trials}
    finite = {point: pair for point, pair in losses.items() if all(map(math.isfinite, pair))}
    points = baseline_points(list(result.plain.coefficients), None)
    marks = {short(label): finite[point] for label, point in points.items() if point in finite}
    found = front(prediction, first, second)
    return draw_front(
        [point.losses for point in found if not point.is_rough],
        [point.losses for point in found],
        distributions=(first, second),
        trials=list(finite.values()),
        found=losses[result.best.coefficients],
        marks=marks,
        title="Two distributions against each other, on the data of the search",
        theme=theme,
    )


def _trials(result: "SearchResult", theme: Theme) -> "Picture":
    values = [trial.value for trial in result.trials]
    if result.score is not None:
        score = result.score
        return draw_trials(
            [score.own(value) for value in values],
            name=f"{score.name} ({score.better} is better)",
            higher_is_better=score.higher_is_better,
            title=f"{result.method}: the trials",
            theme=theme,
        )
    unit = "loss / loss of the base" if result.objective.kind == "improvement" else "nats a token"
    return draw_trials(
        values,
        name=f"objective ({result.objective.kind}), {unit}",
        higher_is_better=False,
        title=f"{result.method}: the trials",
        theme=theme,
    )


def _prediction(result: "SearchResult") -> Prediction:
    """Return what a result knows of points between its trials.

    Raises:
        `ConfigError`: It knows nothing.
    """
    found = Prediction.of(result)
    if found is None:
        raise ConfigError(
            f"method='{result.method}' leaves no quadratics to draw. Search with 'gauss_newton' or 'quadratic'."
        )
    return found


def _two_vectors(names: Sequence[str], point: Sequence[float], axes: tuple[str, str] | None) -> tuple[int, int]:
    """Return the places of two vectors: those named, or those with the largest coefficients, in their order."""
    if axes is None:
        largest = sorted(range(len(names)), key=lambda place: -abs(point[place]))[:2]
        first, second = sorted(largest)
        return first, second
    full = full_names(axes, names, "this search")
    first, second = (names.index(full[name]) for name in axes)
    return first, second


def _hull(result: "SearchResult") -> tuple[float, float]:
    """Return the lowest and the highest coefficient that any trial might have or has."""
    values = [end for pair in result.bounds for end in pair]
    values += [value for trial in result.trials for value in trial.coefficients]
    return min(values), max(values)
