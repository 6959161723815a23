"""Perplexities of several models as bars, for model cards and the demo."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dem_hub.defaults import THEME, Theme
from dem_hub.plotting.labels import label
from dem_hub.plotting.style import SMALL, require_matplotlib

if TYPE_CHECKING:
    from dem_hub.plotting.picture import Picture


def draw_perplexities(table: Mapping[str, Mapping[str, float]], title: str, theme: Theme = THEME) -> "Picture":
    """Draw the perplexity of several models on each distribution, as bars.

    Args:
        table (`Mapping[str, Mapping[str, float]]`): Perplexity by model, then by distribution. The last model has
            another color.
        title (`str`): The title above all panels.
        theme (`str`, defaults to `"light"`): `light` or `dark`.
    """
    require_matplotlib()
    from dem_hub.plotting.picture import Picture

    models = list(table)
    distributions = list(table[models[0]])
    picture = Picture(theme, height=0.4 * len(models) + 1.6, width=max(1.8 + 2.2 * len(distributions), 5.0))
    colors = picture.colors
    with picture.styled():
        all_axes = picture.subplots(1, len(distributions), sharey=True, squeeze=False)[0]
        for axes, name in zip(all_axes, distributions, strict=True):
            values = [table[model][name] for model in models]
            shades = [colors.rival] * (len(models) - 1) + [colors.result]
            bars = axes.barh(range(len(models)), values, color=shades, height=0.7)
            axes.bar_label(bars, fmt="%.4g", padding=4, fontsize=SMALL)
            axes.set_title(label(name, 22))
            axes.set_xlim(0, max(values) * 1.35)  # room for the number at the end of the longest bar
            axes.locator_params(axis="x", nbins=4)
            axes.tick_params(axis="y", length=0)
        # Bars are drawn from the bottom; the first model should be at the top.
        all_axes[0].set_yticks(range(len(models)), [label(model) for model in models])
        all_axes[0].invert_yaxis()
        picture.suptitle(title)
        picture.supxlabel("perplexity (lower is better)", fontsize=SMALL)
    return picture
