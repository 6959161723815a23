"""Cosines between vectors as a matrix, and the norm of each vector as a bar beside it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dem_hub.defaults import THEME, Theme
from dem_hub.plotting.labels import label, number
from dem_hub.plotting.style import SMALL, require_matplotlib

if TYPE_CHECKING:
    from dem_hub.plotting.picture import Picture

# A cosine from which on the cell is dark enough for letters in the color of the background.
_STRONG = 0.6


def draw_cosines(
    names: Sequence[str], norms: Sequence[float], cosines: Sequence[Sequence[float]], theme: Theme = THEME
) -> "Picture":
    """Draw how alike vectors are, and how long.

    Args:
        names (`Sequence[str]`): The vectors.
        norms (`Sequence[float]`): The norm of each.
        cosines (`Sequence[Sequence[float]]`): The cosine of each with each, -1 to 1.
        theme (`str`, defaults to `"light"`): `light` or `dark`.
    """
    require_matplotlib()
    from matplotlib.colors import LinearSegmentedColormap

    from dem_hub.plotting.picture import Picture

    count = len(names)
    side = 0.62 * count
    picture = Picture(theme, height=side + 1.35, width=max(side + 4.4, 6.0))
    colors = picture.colors
    scale = LinearSegmentedColormap.from_list("cosine", [colors.negative, colors.background, colors.positive])
    with picture.styled():
        left, right = picture.subplots(1, 2, sharey=True, width_ratios=[side, 1.7])
        left.imshow(cosines, cmap=scale, vmin=-1, vmax=1, aspect="auto")
        for row, values in enumerate(cosines):
            for column, value in enumerate(values):
                color = colors.background if abs(value) > _STRONG else colors.text
                left.text(column, row, number(value, 2), ha="center", va="center", color=color, fontsize=SMALL)
        numbers = [f"[{place}]" for place in range(1, count + 1)]
        left.set_xticks(range(count), numbers)
        rows = [f"{label(name, 22)}  {place}" for name, place in zip(names, numbers, strict=True)]
        left.set_yticks(range(count), rows)
        left.tick_params(length=0)
        left.spines[:].set_visible(False)
        left.set_xticks([place - 0.5 for place in range(1, count)], minor=True)
        left.set_yticks([place - 0.5 for place in range(1, count)], minor=True)
        left.grid(visible=True, which="minor", color=colors.background, linewidth=2)
        left.tick_params(which="minor", length=0)
        left.set_title("cosine")
        right.barh(range(count), norms, height=0.5, color=colors.rival)
        for row, norm in enumerate(norms):
            right.annotate(f"{norm:.3g}", (norm, row), (4, 0), textcoords="offset points", va="center", fontsize=SMALL)
        right.set_title("norm")
        right.set_xlim(0, 1.55 * max(*norms, 1e-12))
        right.tick_params(axis="y", length=0)
        right.set_xticks([])
        right.spines[["bottom"]].set_visible(False)
    return picture
