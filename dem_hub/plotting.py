"""Pictures, for where people would rather look than read. Needs matplotlib (extra `plot`)."""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dem_hub.errors import MissingDependencyError

_OTHERS, _CHOSEN = "#9aa5b1", "#0b7285"


def plot_perplexities(table: Mapping[str, Mapping[str, float]], path: str | Path, title: str) -> Path:
    """Draw perplexity per distribution for several models, as bars; lower is better.

    Args:
        table (`Mapping[str, Mapping[str, float]]`): perplexity by model, then by distribution; the last model is set off.
        path (`str` or `Path`): the picture, PNG or SVG.
        title (`str`): above it.

    Returns:
        `Path`: where it is.

    Raises:
        `MissingDependencyError`: matplotlib is not installed.
    """
    pyplot = _pyplot()
    distributions = list(next(iter(table.values())))
    figure, all_axes = pyplot.subplots(
        1, len(distributions), figsize=(3.4 * len(distributions), 0.42 * len(table) + 1.5), sharey=True, squeeze=False
    )
    models = list(table)
    for axes, distribution in zip(all_axes[0], distributions, strict=True):
        values = [table[model][distribution] for model in models]
        colors = [_OTHERS] * (len(models) - 1) + [_CHOSEN]
        bars = axes.barh(models, values, color=colors, height=0.72)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axes.set_title(distribution, fontsize=10)
        axes.set_xlim(0, max(values) * 1.22)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("perplexity", fontsize=8)
    all_axes[0][0].invert_yaxis()
    figure.suptitle(title, fontsize=11)
    return _save(pyplot, figure, path)


def plot_search(
    values: Sequence[float],
    before: Mapping[str, float] | None,
    after: Mapping[str, float],
    path: str | os.PathLike[str],
) -> Path:
    """Draw a search: the objective of each trial with the best so far, and each distribution's loss before and after, as perplexity.

    Args:
        values (`Sequence[float]`): the objective of each trial, in order; those that are not finite are left out.
        before (`Mapping[str, float]`, *optional*): the base's loss by distribution, in nats.
        after (`Mapping[str, float]`): the found model's.
        path (`str` or `os.PathLike`): the picture, PNG or SVG.

    Returns:
        `Path`: where it is.

    Raises:
        `MissingDependencyError`: matplotlib is not installed.
    """
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8.4, 0.5 * len(after) + 2.6))
    shown = [(number, value) for number, value in enumerate(values, 1) if math.isfinite(value)]
    numbers = [number for number, _ in shown]
    left.plot(numbers, [value for _, value in shown], "o", color=_OTHERS, markersize=4)
    left.step(
        numbers,
        [min(value for _, value in shown[: place + 1]) for place in range(len(shown))],
        where="post",
        color=_CHOSEN,
    )
    left.set_xlabel("trial", fontsize=8)
    left.set_title("objective, and the best so far", fontsize=10)
    places = range(len(after))
    for offset, losses, color, label in ((-0.2, before, _OTHERS, "base"), (0.2, after, _CHOSEN, "found")):
        if losses is not None:
            bars = right.barh(
                [place + offset for place in places],
                [math.exp(losses[name]) for name in after],
                0.36,
                color=color,
                label=label,
            )
            right.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)
    right.set_yticks(list(places), list(after))
    right.invert_yaxis()
    right.margins(x=0.15)
    right.legend(fontsize=8, frameon=False)
    right.set_title("perplexity, lower is better", fontsize=10)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    return _save(pyplot, figure, path)


def plot_norms(norms: Mapping[str, float], path: str | Path, title: str) -> Path:
    """Draw the norm of each layer's delta, as bars.

    Args:
        norms (`Mapping[str, float]`): the norm by layer, in order.
        path (`str` or `Path`): the picture, PNG or SVG.
        title (`str`): above it.

    Returns:
        `Path`: where it is.

    Raises:
        `MissingDependencyError`: matplotlib is not installed.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 0.18 * len(norms) + 1.2))
    axes.barh(list(norms), list(norms.values()), color=_CHOSEN, height=0.72)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("norm", fontsize=8)
    axes.set_ylim(len(norms) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=6)
    return _save(pyplot, figure, path)


def _save(pyplot: Any, figure: Any, path: str | os.PathLike[str]) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return Path(path)


def require_matplotlib() -> None:
    """Refuse now what could not be drawn after hours of work.

    Raises:
        `MissingDependencyError`: matplotlib is not installed.
    """
    _pyplot()


def _pyplot() -> Any:
    """matplotlib, without a window."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError("Pictures need matplotlib: pip install 'dem-hub[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
