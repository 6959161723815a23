"""The coefficients of a search as dots with intervals, between their bounds."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dem_hub.defaults import THEME, Theme
from dem_hub.plotting.estimate import Estimate
from dem_hub.plotting.labels import label, number
from dem_hub.plotting.style import SMALL, require_matplotlib

if TYPE_CHECKING:
    from dem_hub.plotting.picture import Picture


def draw_coefficients(
    found: Mapping[str, Estimate],
    *,
    others: Mapping[str, Sequence[float]],
    bounds: Sequence[tuple[float, float]],
    title: str,
    note: str = "",
    theme: Theme = THEME,
) -> "Picture":
    """Draw the coefficient of each vector.

    Args:
        found (`Mapping[str, Estimate]`): What was found, by vector. Intervals end at the bounds.
        others (`Mapping[str, Sequence[float]]`): Other coefficients to compare with, by label, in the same order.
        bounds (`Sequence[tuple[float, float]]`): Lowest and highest value that the search might return, in the same
            order.
        title (`str`): The title.
        note (`str`, *optional*): What the intervals are.
        theme (`str`, defaults to `"light"`): `light` or `dark`.
    """
    require_matplotlib()
    from dem_hub.plotting.picture import Picture

    picture = Picture(theme, height=0.36 * len(found) + 1.75)
    colors = picture.colors
    with picture.styled():
        axes = picture.subplots()
        axes.grid(visible=True, axis="x")
        axes.tick_params(axis="y", length=0)
        for row, (low, high) in enumerate(bounds):
            axes.plot([low, high], [row, row], color=colors.grid, linewidth=7, solid_capstyle="butt", zorder=1)
        for place, (name, values) in enumerate(others.items()):
            mark = ("|", "x", "+")[place % 3]
            axes.plot(values, range(len(values)), mark, color=colors.text, ms=13, mew=1.6, label=name, zorder=3)
        for row, (estimate, (low, high)) in enumerate(zip(found.values(), bounds, strict=True)):
            width = None
            if estimate.has_interval and estimate.error is not None:
                # No search within these bounds would find anything beyond them.
                below = max(min(estimate.error, estimate.value - low), 0.0)
                above = max(min(estimate.error, high - estimate.value), 0.0)
                width = [[below], [above]]
            axes.errorbar(
                estimate.value,
                row,
                xerr=width,
                fmt="D",
                color=colors.result,
                elinewidth=2,
                capsize=4,
                label="DEM" if row == 0 else None,
            )
            axes.annotate(
                number(estimate.value),
                (estimate.value, row),
                (0, 7),
                textcoords="offset points",
                ha="center",
                fontsize=SMALL,
                weight="bold",
            )
        axes.axvline(0, color=colors.muted, linewidth=1)
        axes.set_yticks(range(len(found)), [label(name) for name in found])
        axes.set_ylim(len(found) - 0.4, -0.8)
        axes.set_xlabel(f"coefficient\n{note}" if note else "coefficient")
        axes.xaxis.label.set_fontsize(SMALL)
        axes.set_title(title)
        picture.legend(loc="outside lower center", ncols=len(others) + 1)
    return picture
