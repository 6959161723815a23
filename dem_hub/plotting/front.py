"""The losses of two distributions against each other: the front that is expected, and the points of a search."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dem_hub.defaults import THEME, Theme
from dem_hub.plotting.labels import label
from dem_hub.plotting.style import SMALL, require_matplotlib

if TYPE_CHECKING:
    from dem_hub.plotting.picture import Picture

Pair = tuple[float, float]


def draw_front(  # noqa: PLR0913  all but two are named
    sure: Sequence[Pair],
    unsure: Sequence[Pair],
    *,
    distributions: tuple[str, str],
    trials: Sequence[Pair],
    found: Pair,
    marks: Mapping[str, Pair],
    title: str,
    theme: Theme = THEME,
) -> "Picture":
    """Draw what one distribution costs the other.

    Args:
        sure (`Sequence[tuple[float, float]]`): The expected losses of the best mixtures, from one end to the other.
        unsure (`Sequence[tuple[float, float]]`): Likewise, with those that are far from what was measured.
        distributions (`tuple[str, str]`): The distributions to the right and upwards.
        trials (`Sequence[tuple[float, float]]`): The losses of the points that were measured.
        found (`tuple[float, float]`): Those of what was found.
        marks (`Mapping[str, tuple[float, float]]`): Those of some models, by label.
        title (`str`): The title.
        theme (`str`, defaults to `"light"`): `light` or `dark`.
    """
    require_matplotlib()
    from dem_hub.plotting.picture import Picture

    picture = Picture(theme, height=5.0)
    colors = picture.colors
    with picture.styled():
        axes = picture.subplots()
        axes.grid(visible=True)
        axes.margins(0.12)
        if unsure:
            axes.plot(*zip(*unsure, strict=True), ":", color=colors.result, label="best mixtures, rough")
        if sure:
            axes.plot(*zip(*sure, strict=True), "-", color=colors.result, label="best mixtures, expected")
        if trials:
            axes.plot(*zip(*trials, strict=True), "o", color=colors.rival, label="trial, measured")
        axes.plot(*found, "D", color=colors.result, mec=colors.text, ms=10, label="DEM, measured")
        for name, point in marks.items():
            axes.annotate(label(name, 20), point, (7, 5), textcoords="offset points", fontsize=SMALL)
        axes.set_xlabel(f"loss on {label(distributions[0])}, nats a token")
        axes.set_ylabel(f"loss on {label(distributions[1])}, nats a token")
        axes.set_title(title)
        picture.legend(loc="outside lower center", ncols=2)
    return picture
