"""Losses of several models as dots with intervals: one panel for each distribution, one row for each model."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dem_hub.defaults import THEME, Theme
from dem_hub.plotting.estimate import Estimate
from dem_hub.plotting.labels import label, number
from dem_hub.plotting.style import SMALL, require_matplotlib

if TYPE_CHECKING:
    from dem_hub.plotting.picture import Picture

# Panels in a row.
_COLUMNS = 4

# Values further than this from the best, in units of the range of the better half, are off the scale: one diverged
# model would push all others into one place. Chosen by hand.
_FARTHEST = 6.0


def draw_losses(  # noqa: PLR0913  all but one are named
    panels: Mapping[str, Mapping[str, Estimate]],
    *,
    chosen: str,
    reference: str | None = None,
    title: str,
    quantity: str,
    note: str = "",
    higher_is_better: bool = False,
    theme: Theme = THEME,
) -> "Picture":
    """Draw the losses, or scores, of several models.

    Args:
        panels (`Mapping[str, Mapping[str, Estimate]]`): By distribution and model: the loss, with the interval of its
            difference from that of `reference`. All have the same models.
        chosen (`str`): The model that is emphasized.
        reference (`str`, *optional*): The model through whose loss a line goes.
        title (`str`): The title.
        quantity (`str`): What is drawn, with its unit.
        note (`str`, *optional*): What the intervals are.
        higher_is_better (`bool`, defaults to `False`): Whether the best values are the highest.
        theme (`str`, defaults to `"light"`): `light` or `dark`.
    """
    require_matplotlib()
    from dem_hub.plotting.picture import Picture

    models = list(next(iter(panels.values())))
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    picture = Picture(theme, height=rows * (0.3 * len(models) + 0.75) + 0.8, width=2.1 + 2.1 * columns)
    with picture.styled():
        grid = picture.subplots(rows, columns, sharey=True, squeeze=False)
        all_axes = list(grid.flat)
        for axes, (name, estimates) in zip(all_axes, panels.items(), strict=False):
            limits = _limits(list(estimates.values()), higher_is_better=higher_is_better)
            _draw_panel(picture, axes, estimates, limits, chosen, reference)
            axes.set_title(label(name, 22))
        for axes in all_axes[len(panels) :]:
            axes.set_visible(False)
        all_axes[0].set_yticks(range(len(models)), [label(name) for name in models])
        all_axes[0].set_ylim(len(models) - 0.4, -0.6)
        for line, name in zip(all_axes[0].get_yticklabels(), models, strict=True):
            line.set_fontweight("bold" if name == chosen else "normal")
        picture.suptitle(title)
        picture.supxlabel(f"{quantity}\n{note}" if note else quantity, fontsize=SMALL)
    return picture


def _draw_panel(
    picture: "Picture",
    axes: Any,
    estimates: Mapping[str, Estimate],
    limits: tuple[float, float],
    chosen: str,
    reference: str | None,
) -> None:
    colors = picture.colors
    low, high = limits
    room = high - low
    axes.set_xlim(low - 0.08 * room, high + 0.7 * room)  # to the right is room for the numbers
    axes.grid(visible=True, axis="x")
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=3)
    if reference is not None and math.isfinite(estimates[reference].value):
        axes.axvline(estimates[reference].value, color=colors.result, linewidth=1, linestyle=(0, (3, 3)))
    for row, (name, estimate) in enumerate(estimates.items()):
        color = colors.result if name == chosen else colors.rival
        _draw_mark(axes, row, estimate, limits, color, "D" if name == chosen else "o")
        axes.text(
            1.0,
            row,
            number(estimate.value) if math.isfinite(estimate.value) else "not finite",
            transform=axes.get_yaxis_transform(),  # a column at the right edge, whatever the values are
            ha="right",
            va="center",
            fontsize=SMALL,
            weight="bold" if name == chosen else "normal",
        )


def _draw_mark(axes: Any, row: int, estimate: Estimate, limits: tuple[float, float], color: str, mark: str) -> None:
    """Draw a value with its interval, or an arrow at the edge that it lies beyond."""
    low, high = limits
    if estimate.value < low:
        axes.plot(low, row, "<", color=color)
    elif not estimate.value <= high:
        axes.plot(high, row, ">", color=color)
    else:
        width = estimate.error if estimate.has_interval else None
        axes.errorbar(estimate.value, row, xerr=width, fmt=mark, color=color, elinewidth=1.8, capsize=3)


def _limits(estimates: Sequence[Estimate], *, higher_is_better: bool) -> tuple[float, float]:
    """Return the range of the axis: all values and intervals, without values that would leave no room for others."""
    sign = -1.0 if higher_is_better else 1.0
    finite = sorted((each for each in estimates if math.isfinite(each.value)), key=lambda each: sign * each.value)
    if not finite:
        return 0.0, 1.0
    best, middle = finite[0], finite[len(finite) // 2]
    farthest = _FARTHEST * abs(middle.value - best.value)
    shown = [each for each in finite if abs(each.value - best.value) <= farthest]
    if len(shown) < 3:
        shown = finite
    ends = []
    for each in shown:
        error = each.error if each.has_interval and each.error is not None else 0.0
        ends += [each.value - error, each.value + error]
    low, high = min(ends), max(ends)
    if high - low < 1e-9:
        return low - 0.05, high + 0.05
    return low, high
