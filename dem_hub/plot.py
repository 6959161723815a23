"""Pictures, for where people would rather look than read. Needs matplotlib (extra `plot`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dem_hub.errors import MissingDependencyError


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
        colours = ["#9aa5b1"] * (len(models) - 1) + ["#0b7285"]
        bars = axes.barh(models, values, color=colours, height=0.72)
        axes.bar_label(bars, fmt="%.2f", padding=3, fontsize=8)
        axes.set_title(distribution, fontsize=10)
        axes.set_xlim(0, max(values) * 1.22)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.set_xlabel("perplexity", fontsize=8)
    all_axes[0][0].invert_yaxis()
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return Path(path)


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
    axes.barh(list(norms), list(norms.values()), color="#0b7285", height=0.72)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("norm", fontsize=8)
    axes.set_ylim(len(norms) - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=6)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
    return Path(path)


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError as error:
        raise MissingDependencyError("Pictures need matplotlib: pip install 'dem-hub[plot]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot
