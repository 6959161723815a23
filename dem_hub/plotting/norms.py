"""The norm of a vector by layer and by what the tensors are for, and of what is in no layer."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dem_hub.defaults import THEME, Theme
from dem_hub.plotting.labels import label
from dem_hub.plotting.style import MARKS, SMALL, require_matplotlib

if TYPE_CHECKING:
    from dem_hub.plotting.picture import Picture

# Of the largest norm to the smallest: from here on the axis is logarithmic.
_WIDE = 100.0


def draw_norms(
    layers: Mapping[str, Mapping[int, float]], outside: Mapping[str, float], title: str, theme: Theme = THEME
) -> "Picture":
    """Draw the norms of a vector.

    Args:
        layers (`Mapping[str, Mapping[int, float]]`): By kind, such as `attention`: the norm in each layer.
        outside (`Mapping[str, float]`): The norms of tensors in no layer, by name.
        title (`str`): The title.
        theme (`str`, defaults to `"light"`): `light` or `dark`.
    """
    require_matplotlib()
    from dem_hub.plotting.picture import Picture

    height = 3.9 if layers else 1.3
    if outside:
        height += 0.3 * len(outside) + 0.7
    picture = Picture(theme, height=height)
    with picture.styled():
        if layers and outside:
            upper, lower = picture.subplots(2, 1, height_ratios=[3.2, 0.3 * len(outside) + 0.25])
        else:
            upper = lower = picture.subplots()
        if layers:
            _draw_layers(picture, upper, layers)
        if outside:
            _draw_outside(picture, lower, outside)
        picture.suptitle(title)
    return picture


def _draw_layers(picture: "Picture", axes: Any, layers: Mapping[str, Mapping[int, float]]) -> None:
    colors = picture.colors.kinds
    axes.grid(visible=True)
    for place, (kind, norms) in enumerate(layers.items()):
        numbers = sorted(norms)
        axes.plot(
            numbers,
            [norms[number] for number in numbers],
            marker=MARKS[place % len(MARKS)],
            color=colors[place % len(colors)],
            label=label(kind),
        )
    positive = [norm for norms in layers.values() for norm in norms.values() if norm > 0]
    if positive and max(positive) > _WIDE * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")  # its own labels are formulas, which no label of ours is
    else:
        axes.set_ylim(bottom=0)
    axes.margins(y=0.15)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("layer")
    axes.set_ylabel("norm of the change")
    axes.legend(ncols=min(len(layers), 3), loc="best")


def _draw_outside(picture: "Picture", axes: Any, outside: Mapping[str, float]) -> None:
    names = list(outside)
    bars = axes.barh(range(len(names)), list(outside.values()), height=0.6, color=picture.colors.rival)
    axes.bar_label(bars, fmt="%.3g", padding=4, fontsize=SMALL)
    axes.set_yticks(range(len(names)), [label(name, 30) for name in names])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    axes.set_xlabel("norm of the change, in no layer")
