"""The expected loss over two of the coefficients, as a picture: bands of equal loss, the trials of the search, what it
found, and where the sliders stand.

The picture is SVG text. It is drawn anew at each move of a slider, since the bands change with the other coefficients
too; that takes a few milliseconds, where a library for plots takes a hundred times that.
"""

from collections.abc import Sequence
from html import escape

import torch

from dem_hub.hub.foreign_text import printable
from dem_hub.plotting.style import SEQUENTIAL
from dem_hub.search.held_out import DEM
from dem_hub.search.landscape import BANDS, Landscape
from dem_hub.search.prediction import Prediction

# Cells of the picture in each direction. Chosen by hand: the edges of the bands look smooth.
_CELLS = 60

# Red, green and blue of the ends and the middle of the scale. Low losses are dark.
_COLORS = tuple(bytes.fromhex(color.removeprefix("#")) for color in SEQUENTIAL)

# Pixels: the square with the bands, and the room for the axes to the left of it and below.
_SIDE = 300
_MARGIN = 52
_RIGHT = 14
_TOP = 30

_LEGEND = f"Red: your sliders. Large circle: the {DEM} that the search found. Small circles: its other trials."
_OTHERS = " The colors are with all other coefficients where their sliders stand; the circles may have others."

Range = tuple[float, float]


def draw_landscape(
    prediction: Prediction, point: Sequence[float], axes: tuple[int, int], labels: tuple[str, str], span: Range
) -> str:
    """Return the picture as SVG, in a figure with a legend.

    Args:
        prediction ([`Prediction`]): What the search knows.
        point (`Sequence[float]`): Where the sliders stand.
        axes (`tuple[int, int]`): The numbers of the two vectors, to the right and upwards.
        labels (`tuple[str, str]`): Their names.
        span (`tuple[float, float]`): The lowest and the highest coefficient of both axes.
    """
    levels = torch.linspace(span[0], span[1], _CELLS + 1, dtype=torch.float64, device="cpu")
    centers = (levels[:-1] + levels[1:]) / 2
    landscape = Landscape.of(prediction, point, axes, centers)
    parts = [_bands(landscape), _axes(labels, span)]
    parts += [_circle(trial.coefficients, axes, span, 3, "trial") for trial in prediction.result.trials]
    parts.append(_circle(prediction.result.best.coefficients, axes, span, 5, "found"))
    parts.append(_circle(point, axes, span, 8, "now"))
    title = escape(printable(_title(prediction, landscape)))
    parts.append(_text(_MARGIN, 18, title, "start"))
    size = f"0 0 {_MARGIN + _SIDE + _RIGHT} {_TOP + _SIDE + _MARGIN}"
    picture = f'<svg class="landscape" viewBox="{size}" role="img" aria-label="{title}">{"".join(parts)}</svg>'
    legend = _LEGEND if len(point) == len(axes) else _LEGEND + _OTHERS
    return f'<figure class="landscape">{picture}<figcaption class="legend">{legend}</figcaption></figure>'


def _title(prediction: Prediction, landscape: Landscape) -> str:
    """Return what the bands are, with the best value, which is dark, and the worst."""
    score = prediction.result.score
    quantity = f"expected loss ({prediction.result.objective.kind})"
    best, worst = landscape.lowest, landscape.highest
    if score is not None:
        quantity = f"expected {score.name}"
        best, worst = score.own(best), score.own(worst)
    return f"{quantity}: {best:.3f} (dark) to {worst:.3f} (light)"


def _bands(landscape: Landscape) -> str:
    """Return the bands, one path for each colour, of runs of cells in the rows."""
    size = _SIDE / _CELLS
    paths: list[list[str]] = [[] for _ in range(BANDS)]
    for row, cells in enumerate(landscape.bands.tolist()):
        y = _TOP + _SIDE - (row + 1) * size
        start = 0
        for column in range(1, _CELLS + 1):
            if column == _CELLS or cells[column] != cells[start]:
                width = (column - start) * size
                paths[cells[start]].append(f"M{_MARGIN + start * size:g} {y:g}h{width:g}v{size:g}h{-width:g}z")
                start = column
    drawn = [f'<path fill="{_color(band)}" d="{"".join(path)}"/>' for band, path in enumerate(paths) if path]
    return f'<g shape-rendering="crispEdges">{"".join(drawn)}</g>'


def _color(band: int) -> str:
    """Return the colour of a band, between the ends and the middle of the scale."""
    place = 2 * band / (BANDS - 1)
    first = min(int(place), 1)
    mixed = []
    for low, high in zip(_COLORS[first], _COLORS[first + 1], strict=True):
        mixed.append(round(low + (high - low) * (place - first)))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _axes(labels: tuple[str, str], span: Range) -> str:
    """Return the ticks and the names of the two coefficients."""
    texts = []
    for share in (0.0, 0.5, 1.0):
        value = f"{span[0] + share * (span[1] - span[0]):g}"
        texts.append(_text(_MARGIN + share * _SIDE, _TOP + _SIDE + 16, value, "middle"))
        texts.append(_text(_MARGIN - 6, _TOP + (1 - share) * _SIDE + 4, value, "end"))
    right, up = (escape(printable(label)) for label in labels)
    texts.append(_text(_MARGIN + _SIDE / 2, _TOP + _SIDE + 38, f"{right} →", "middle"))
    middle = _TOP + _SIDE / 2
    texts.append(f'<g transform="rotate(-90 14 {middle:g})">{_text(14, middle, f"{up} →", "middle")}</g>')
    return "".join(texts)


def _circle(point: Sequence[float], axes: tuple[int, int], span: Range, radius: int, kind: str) -> str:
    """Return a mark at a point; nothing if it lies outside of the picture."""
    x, y = ((point[axis] - span[0]) / (span[1] - span[0]) for axis in axes)
    if not (0 <= x <= 1 and 0 <= y <= 1):
        return ""
    return f'<circle class="{kind}" cx="{_MARGIN + x * _SIDE:.1f}" cy="{_TOP + (1 - y) * _SIDE:.1f}" r="{radius}"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}">{text}</text>'
