"""Every picture in both themes and formats, with easy and with hard contents: labels that fit, the same bytes each time,
and nothing left behind.
"""

import io
import math
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dem_hub.errors import ConfigError
from dem_hub.plotting import (
    Estimate,
    Surface,
    draw_coefficients,
    draw_cosines,
    draw_front,
    draw_landscape,
    draw_losses,
    draw_norms,
    draw_perplexities,
    draw_trials,
)
from dem_hub.plotting.style import palette

LONG = "a-fine-tune-of-somebody/with-a-name-that-does-not-end-v2"
HOSTILE = "$\\frac{1}{2}$ <b>&\x1b]0;owned\x07"
EIGHT = [f"vector {number} of eight" for number in range(1, 8)] + [LONG]


def losses(**options: Any) -> Any:
    panels = {
        "mean": {"base": Estimate(2.5, 0.1), "maths alone": Estimate(2.3, math.nan), "DEM": Estimate(2.2, 0.0)},
        "chat": {"base": Estimate(2.9), "maths alone": Estimate(2.8, 0.05), "DEM": Estimate(2.4)},
    }
    return draw_losses(panels, chosen="DEM", reference="DEM", title="losses", quantity="nats", note="note", **options)


def many_losses(**options: Any) -> Any:
    values = [2.5, 2.4, math.inf, 2.3, 250.0, 2.35, 2.45, math.nan]
    models = {name: Estimate(value, 0.02) for name, value in zip(EIGHT, values, strict=True)}
    panels = dict.fromkeys(("mean", LONG, HOSTILE, "d", "e", "f"), models)
    return draw_losses(panels, chosen=LONG, reference=LONG, title=LONG, quantity="nats", **options)


def coefficients(*names: str, **options: Any) -> Any:
    found = {name: Estimate(0.3 * place - 0.5, 0.4) for place, name in enumerate(names)}
    others = {"1/N": [1 / len(names)] * len(names), "returned": [0.0] * len(names)}
    bounds = [(-1.0, 2.0)] * len(names)
    return draw_coefficients(found, others=others, bounds=bounds, title="coefficients", note="note", **options)


def cosines(*names: str, **options: Any) -> Any:
    matrix = [[1.0 if row == column else -0.7 for column in range(len(names))] for row in range(len(names))]
    return draw_cosines(names, [10.0**place for place in range(len(names))], matrix, **options)


def landscape(name: str, *, higher_is_better: bool = False, **options: Any) -> Any:
    levels = [0.0, 0.5, 1.0, 1.5]
    values = [[(x - 1) ** 2 + (y - 0.5) ** 2 for x in levels] for y in levels]
    surface = Surface(levels, values, [0.0, 0.1, 0.5, 1.25], [[0.02 * x for x in levels]] * 4, 0.01)
    return draw_landscape(
        surface,
        axes=(name, "maths"),
        trials=[(0.0, 0.0), (1.0, 0.0)],
        found=(1.0, 0.5),
        quantity="loss",
        title="landscape",
        higher_is_better=higher_is_better,
        **options,
    )


def front(name: str, **options: Any) -> Any:
    line = [(2.0, 3.0), (2.2, 2.5), (2.6, 2.3)]
    marks = {"base": (2.9, 3.4), name: (2.7, 2.9)}
    return draw_front(
        line[:2],
        line,
        distributions=("maths", name),
        trials=list(marks.values()),
        found=(2.25, 2.5),
        marks=marks,
        title="front",
        **options,
    )


def norms(lines: int, *, widest: float = 1.0, **options: Any) -> Any:
    layers = {f"kind {line}": {layer: widest**line + layer for layer in range(12)} for line in range(lines)}
    return draw_norms(layers, {"model.embed_tokens": 3.0, LONG: 0.0}, "norms", **options)


PICTURES: dict[str, Callable[..., Any]] = {
    "losses": losses,
    "losses, many": many_losses,
    "coefficients": lambda **options: coefficients("maths", "chat", **options),
    "coefficients, one": lambda **options: coefficients(HOSTILE, **options),
    "coefficients, eight": lambda **options: coefficients(*EIGHT, **options),
    "cosines": lambda **options: cosines("maths", "chat", **options),
    "cosines, one": lambda **options: cosines(LONG, **options),
    "cosines, eight": lambda **options: cosines(*EIGHT, **options),
    "landscape": lambda **options: landscape("chat", **options),
    "landscape of a score": lambda **options: landscape(LONG, higher_is_better=True, **options),
    "front": lambda **options: front("chat", **options),
    "front, long": lambda **options: front(LONG, **options),
    "norms": lambda **options: norms(3, **options),
    "norms, wide": lambda **options: norms(6, widest=30.0, **options),
    "norms outside alone": lambda **options: norms(0, **options),
    "trials": lambda **options: draw_trials([3.0, math.inf, 2.8, 2.9], name=LONG, title="trials", **options),
    "perplexities": lambda **options: draw_perplexities(
        {"base": {"maths": 12.0, LONG: 2e6}, HOSTILE: {"maths": 9.0, LONG: 14.0}}, "perplexities", **options
    ),
}


def saved(picture: Any, kind: str) -> bytes:
    buffer = io.BytesIO()
    picture.savefig(buffer, format=kind)
    return buffer.getvalue()


@pytest.mark.parametrize("name", PICTURES)
def test_labels_fit(name: str) -> None:
    """Everything is within the picture, and no two labels of an axis are upon each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    picture = PICTURES[name]()
    FigureCanvasAgg(picture).draw()
    drawn = picture.get_tightbbox()  # inches
    width, height = picture.get_size_inches()
    slack = 0.02
    assert drawn.x0 >= -slack and drawn.y0 >= -slack and drawn.x1 <= width + slack and drawn.y1 <= height + slack, drawn
    for axes in picture.axes:
        assert not any("mathdefault" in text.get_text() for text in axes.get_yticklabels())
        low, high = sorted(axes.get_ylim())
        shown = [text for text in axes.get_yticklabels() if low <= text.get_position()[1] <= high]
        rows = sorted((text.get_window_extent() for text in shown if text.get_text()), key=lambda box: box.y0)
        assert all(lower.y1 <= upper.y0 + 1 for lower, upper in pairwise(rows)), axes.get_title()


@pytest.mark.parametrize("name", PICTURES)
def test_the_same_bytes_in_both_formats(name: str) -> None:
    svg = saved(PICTURES[name](), "svg")
    again = PICTURES[name]()
    saved(again, "png")
    assert svg == saved(again, "svg")  # whatever it was saved as before
    assert svg.startswith(b"<?xml")
    assert b"<dc:date>" not in svg
    assert b"\x1b" not in svg


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_themes(tmp_path: Path, theme: str) -> None:
    from matplotlib.colors import to_hex

    picture = losses(theme=theme)
    picture.savefig(tmp_path / "a.png")
    first = (tmp_path / "a.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    assert b"Software" not in first
    losses(theme=theme).savefig(tmp_path / "b.png")
    assert (tmp_path / "b.png").read_bytes() == first
    assert to_hex(picture.get_facecolor()) == palette(theme).background  # type: ignore[arg-type]


def test_the_users_own_style_stays_out_of_it_and_stays() -> None:
    import matplotlib

    expected = saved(losses(), "svg")
    with matplotlib.rc_context({"font.size": 40.0, "svg.fonttype": "none", "axes.facecolor": "red"}):
        before = dict(matplotlib.rcParams)
        assert saved(losses(), "svg") == expected
        assert dict(matplotlib.rcParams) == before


def test_pyplot_knows_nothing_of_it() -> None:
    known = sys.modules.get("matplotlib.pyplot")
    numbers = known.get_fignums() if known else []
    picture = losses()
    assert picture._repr_png_().startswith(b"\x89PNG")
    from matplotlib import pyplot

    assert pyplot.get_fignums() == numbers


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="theme is 'pink'; it must be one of light, dark"):
        losses(theme="pink")
    with pytest.raises(ConfigError, match=r"a\.xyz' has the ending of no picture\. Give it one of \.png, \.svg, \.pdf"):
        losses().savefig(tmp_path / "a.xyz")


def test_values_that_leave_no_room_for_others_are_at_the_edge() -> None:
    axes = many_losses().axes[0]
    low, high = axes.get_xlim()
    assert 2.0 < low < 2.3
    assert 2.5 < high < 3.0
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["2.500", "2.400", "not finite", "2.300", "250.000", "2.350", "2.450", "not finite"]


def test_intervals_end_at_the_bounds() -> None:
    picture = draw_coefficients({"a": Estimate(0.1, 0.5)}, others={}, bounds=[(0.0, 1.5)], title="")
    (bar,) = picture.axes[0].containers
    (ends,) = bar.lines[2][0].get_segments()
    assert ends[:, 0].tolist() == pytest.approx([0.0, 0.6])


@pytest.mark.parametrize(("higher", "best"), [(False, [3.0, 2.8, 2.8]), (True, [3.0, 3.0, 3.0])])
def test_trials(*, higher: bool, best: list[float]) -> None:
    axes = draw_trials([3.0, math.nan, 2.8, 2.9], name="value", title="", higher_is_better=higher).axes[0]
    so_far, each = axes.lines
    assert so_far.get_ydata().tolist() == best
    assert (each.get_xdata().tolist(), each.get_ydata().tolist()) == ([1, 3, 4], [3.0, 2.8, 2.9])
