"""Plots of searches, perplexities and vector norms, for model cards and the demo.

They need matplotlib (extra `plot`), which is imported when a plot is drawn. The format of a file, PNG or SVG, is
that of its name.
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dem_hub.errors import MissingDependencyError
from dem_hub.hub.foreign_text import printable

# Colors of what is compared with (gray) and of what dem_hub made (teal).
_BASELINE_COLOR = "#9aa5b1"
_RESULT_COLOR = "#0b7285"

# Height of a bar, as a share of the distance between two bars. A plot with two bars in each place divides it
# between them.
_BAR_HEIGHT = 0.72

_DOTS_PER_INCH = 150


def plot_perplexities(table: Mapping[str, Mapping[str, float]], path: str | Path, title: str) -> Path:
    """Draw the perplexity of several models on each distribution, as bars.

    Args:
        table (`Mapping[str, Mapping[str, float]]`): Perplexity by model, then by distribution. The last model has
            another color.
        path (`str` or `Path`): The file to write, PNG or SVG.
        title (`str`): The title above all plots.

    Returns:
        `Path`: The path of the file.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If matplotlib is not installed.
    """
    pyplot = _pyplot()
    models = list(table)
    distributions = list(table[models[0]])
    size = (3.4 * len(distributions), 0.42 * len(models) + 1.5)  # inches
    figure, all_axes = pyplot.subplots(1, len(distributions), figsize=size, sharey=True, squeeze=False)
    colors = [_BASELINE_COLOR] * (len(models) - 1) + [_RESULT_COLOR]
    for axes, distribution in zip(all_axes[0], distributions, strict=True):
        values = [table[model][distribution] for model in models]
        bars = axes.barh(models, values, color=colors, height=_BAR_HEIGHT)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axes.set_title(_plain(distribution), fontsize=10)
        axes.set_xlim(0, max(values) * 1.22)  # room for the number at the end of the longest bar
        axes.set_xlabel("perplexity (lower is better)", fontsize=8)
        _style(axes)
    # Bars are drawn from the bottom; the first model should be at the top.
    all_axes[0][0].invert_yaxis()
    figure.suptitle(title, fontsize=11)
    return _save(pyplot, figure, path)


def plot_search(
    values: Sequence[float],
    before: Mapping[str, float] | None,
    after: Mapping[str, float],
    path: str | os.PathLike[str],
) -> Path:
    """Draw a search: the objective of each trial, and the perplexity of each distribution before and after.

    Args:
        values (`Sequence[float]`): The objective of each trial, in order. Values that are not finite are left out.
        before (`Mapping[str, float]`, *optional*): The loss of the base in nats a token, by distribution.
        after (`Mapping[str, float]`): The loss of the merged model, likewise.
        path (`str` or `os.PathLike`): The file to write, PNG or SVG.

    Returns:
        `Path`: The path of the file.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If matplotlib is not installed.
    """
    pyplot = _pyplot()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(8.4, 0.5 * len(after) + 2.6))
    _draw_trials(left, values)
    _draw_before_and_after(right, before, after)
    return _save(pyplot, figure, path)


def _draw_trials(axes: Any, values: Sequence[float]) -> None:
    """Draw the objective of each trial as a point, and the lowest objective so far as a line."""
    numbers = []
    finite_values = []
    lowest_so_far = []
    for number, value in enumerate(values, 1):
        if math.isfinite(value):
            numbers.append(number)
            finite_values.append(value)
            lowest_so_far.append(min(finite_values))
    axes.plot(numbers, finite_values, "o", color=_BASELINE_COLOR, markersize=4, label="trial")
    axes.step(numbers, lowest_so_far, where="post", color=_RESULT_COLOR, label="lowest so far")
    axes.set_xlabel("trial", fontsize=8)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("objective", fontsize=8)
    axes.set_title("Objective (lower is better)", fontsize=10)
    axes.legend(fontsize=8, frameon=False)
    _style(axes)


def _draw_before_and_after(axes: Any, before: Mapping[str, float] | None, after: Mapping[str, float]) -> None:
    """Draw the perplexity of each distribution as two bars, one for the base and one for the merged model."""
    half_bar = _BAR_HEIGHT / 2
    if before is not None:
        _draw_perplexities(axes, -half_bar / 2, [before[name] for name in after], _BASELINE_COLOR, "base")
    _draw_perplexities(axes, half_bar / 2, list(after.values()), _RESULT_COLOR, "merged model")
    axes.set_yticks(range(len(after)), [_plain(name) for name in after])
    axes.invert_yaxis()
    axes.margins(x=0.15)  # room for the number at the end of the longest bar
    axes.legend(fontsize=8, frameon=False)
    axes.set_title("Perplexity (lower is better)", fontsize=10)
    _style(axes)


def _draw_perplexities(axes: Any, offset: float, losses: Sequence[float], color: str, label: str) -> None:
    """Draw one bar for each loss in nats, `offset` below its place."""
    positions = [place + offset for place in range(len(losses))]
    bars = axes.barh(positions, [math.exp(loss) for loss in losses], _BAR_HEIGHT / 2, color=color, label=label)
    axes.bar_label(bars, fmt="%.3g", padding=3, fontsize=8)


def plot_norms(norms: Mapping[str, float], path: str | Path, title: str) -> Path:
    """Draw the norm of each layer's delta, as bars.

    Args:
        norms (`Mapping[str, float]`): The norm of each layer, in order.
        path (`str` or `Path`): The file to write, PNG or SVG.
        title (`str`): The title of the plot.

    Returns:
        `Path`: The path of the file.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If matplotlib is not installed.
    """
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 0.18 * len(norms) + 1.2))
    axes.barh(list(norms), list(norms.values()), color=_RESULT_COLOR, height=_BAR_HEIGHT)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("norm", fontsize=8)
    axes.set_ylim(len(norms) - 0.4, -0.6)  # the first layer at the top, and no empty space beyond the last bar
    _style(axes, label_size=6)
    return _save(pyplot, figure, path)


def _plain(name: str) -> str:
    """Return a name as a label that shows it. matplotlib reads what stands between dollar signs as a formula."""
    return printable(name).replace("$", r"\$")


def _style(axes: Any, label_size: int = 8) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=label_size)


def _save(pyplot: Any, figure: Any, path: str | os.PathLike[str]) -> Path:
    figure.tight_layout()
    figure.savefig(path, dpi=_DOTS_PER_INCH)
    pyplot.close(figure)
    return Path(path)


def require_matplotlib() -> None:
    """Check that matplotlib is installed, before the hours of work whose result will be drawn.

    Raises:
        [`~dem_hub.errors.MissingDependencyError`]: If it is not.
    """
    _pyplot()


def _pyplot() -> Any:
    """Return matplotlib's pyplot, set to draw into files and open no window."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError(
            "Plots need matplotlib, which is not installed. Run `pip install 'dem-hub[plot]'`."
        ) from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
