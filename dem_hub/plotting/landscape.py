"""The expected loss over two coefficients as bands of color, with the points of a search on it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dem_hub.defaults import THEME, Theme
from dem_hub.plotting.labels import label, number
from dem_hub.plotting.style import SEQUENTIAL, SMALL, require_matplotlib

if TYPE_CHECKING:
    from dem_hub.plotting.picture import Picture

Pair = tuple[float, float]


@dataclass(frozen=True)
class Surface:
    """A function of two coefficients on a grid.

    `levels` are the places of the grid along both axes, and `values[row][column]` the function at the row's place
    upwards and the column's to the right. `edges` are the values between the bands. `doubt` is how far off a value
    may be, on the same grid, and `limit` from where on that is much; both are empty where nothing is known of it.
    """

    levels: Sequence[float]
    values: Sequence[Sequence[float]]
    edges: Sequence[float]
    doubt: Sequence[Sequence[float]] = ()
    limit: float = 0.0


def draw_landscape(  # noqa: PLR0913  all but one are named
    surface: Surface,
    *,
    axes: tuple[str, str],
    trials: Sequence[Pair],
    found: Pair,
    quantity: str,
    title: str,
    higher_is_better: bool = False,
    theme: Theme = THEME,
) -> "Picture":
    """Draw a surface over two coefficients.

    Args:
        surface ([`Surface`]): The expected losses.
        axes (`tuple[str, str]`): The vectors to the right and upwards.
        trials (`Sequence[tuple[float, float]]`): The points that were measured.
        found (`tuple[float, float]`): What was found.
        quantity (`str`): What the colors are.
        title (`str`): The title.
        higher_is_better (`bool`, defaults to `False`): Whether the best values are the highest; the best are dark.
        theme (`str`, defaults to `"light"`): `light` or `dark`.
    """
    require_matplotlib()
    from matplotlib.colors import LinearSegmentedColormap

    from dem_hub.plotting.picture import Picture

    picture = Picture(theme, height=5.6, width=6.4)
    shades = SEQUENTIAL[::-1] if higher_is_better else SEQUENTIAL
    scale = LinearSegmentedColormap.from_list("loss", shades, N=len(surface.edges) - 1)
    with picture.styled():
        field = picture.subplots()
        bands = field.contourf(
            surface.levels, surface.levels, surface.values, levels=surface.edges, cmap=scale, extend="both"
        )
        bands.set_edgecolor("face")  # without it, viewers of SVG show thin lines between bands
        if surface.doubt:
            _draw_doubt(field, surface)
        for points, mark, size, name in (
            (trials, "o", 6, "trial"),
            ([found], "D", 10, "DEM"),
        ):
            across, up = zip(*points, strict=True) if points else ((), ())
            field.plot(across, up, mark, color="#ffffff", mec="#000000", ms=size, label=name, clip_on=False)
        low, high = min(surface.levels), max(surface.levels)
        field.set_xlim(low, high)
        field.set_ylim(low, high)
        field.set_aspect("equal")
        field.set_xlabel(f"coefficient of {label(axes[0])}")
        field.set_ylabel(f"coefficient of {label(axes[1])}")
        field.set_title(title)
        bar = picture.colorbar(bands, ax=field, label=quantity, format=lambda value, _: number(value))
        bar.ax.set_yticks(surface.edges[:: max(len(surface.edges) // 6, 1)])
        if higher_is_better:
            bar.ax.invert_yaxis()
        picture.legend(loc="outside lower center", ncols=2)
    return picture


def _draw_doubt(axes: Any, surface: Surface) -> None:
    """Draw a line around where the expected values are good."""
    highest = max(map(max, surface.doubt))
    lowest = min(map(min, surface.doubt))
    if lowest < surface.limit < highest:
        lines = axes.contour(
            surface.levels,
            surface.levels,
            surface.doubt,
            levels=[surface.limit],
            colors="#ffffff",
            linestyles="dashed",
            linewidths=1.4,
        )
        axes.clabel(lines, fmt=lambda _: f"±{surface.limit:g}", fontsize=SMALL)
