"""What the page says of the coefficients at which a tab's sliders stand, without a page.

A slider moves in steps, and a preset has as many digits as it has. Sliders that stand as near to a preset as their
steps allow mean the preset itself: so what was found is measured and saved as it was found, and a recipe with
coefficients for groups of tensors stays one until a slider is moved.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dem_hub.defaults import BOUNDS
from dem_hub.hub.foreign_text import markdown
from dem_hub.merging.coefficients import Coefficient, level
from dem_hub.mixer.landscape import draw_landscape
from dem_hub.mixer.mixer import Mixer
from dem_hub.mixer.tables import Losses, LossRow, loss_rows, loss_table

DIGITS = 3  # of a slider: finer than any loss shows
STEP = 10**-DIGITS
_SAME = 1e-6  # of a step: numbers that differ by less differ by float64's rounding


@dataclass(frozen=True)
class Tab:
    """What one tab of a browser has set.

    Args:
        values (`tuple[float, ...]`): Where the sliders stand, in the order of the mixer's vectors.
        aside (`tuple[int, ...]`): The numbers of the vectors that are put aside.
        axes (`tuple[int, int]`, *optional*): The numbers of the two vectors of the landscape, if there is one.
    """

    values: tuple[float, ...]
    aside: tuple[int, ...] = ()
    axes: tuple[int, int] | None = None

    @classmethod
    def read(cls, mixer: Mixer, kept: Sequence[int], across: int | None, up: int | None, *values: float) -> "Tab":
        """Read the components of a tab. It may not know of vectors that another tab has added: these are aside."""
        count = len(mixer.names)
        aside = tuple(number for number in range(count) if number not in kept)
        axes = None
        if across is not None and up is not None and across != up:
            axes = (across, up)
        return cls(tuple(values[:count]), aside, axes)


@dataclass(frozen=True)
class Mixture:
    """The coefficients that sliders stand for, in the order of the mixer's vectors; `label` is that of a preset."""

    coefficients: tuple[Coefficient, ...]
    label: str | None


@dataclass(frozen=True)
class View:
    """What the page shows: the preset, if it is one; HTML of the table, Markdown of the note below it, and SVG of the
    landscape, which may be empty.
    """

    label: str | None
    table: str
    note: str
    landscape: str


def slider_range(mixer: Mixer) -> tuple[float, float]:
    """Return the lowest and the highest coefficient of a slider: the search's bounds, 0 and 1, and every preset."""
    bounds = [BOUNDS] if mixer.opening.result is None else list(mixer.opening.result.bounds)
    levels = [value for preset in mixer.presets() for value in preset.levels]
    ends = [end for pair in bounds for end in pair]
    # Whole steps, so that a coefficient with as many digits as a slider shows is within them.
    lowest = math.floor(min(0.0, *ends, *levels) / STEP + _SAME) * STEP
    highest = math.ceil(max(1.0, *ends, *levels) / STEP - _SAME) * STEP
    return round(lowest, DIGITS), round(highest, DIGITS)


def mixture_at(mixer: Mixer, tab: Tab) -> Mixture:
    """Return what the sliders of a tab stand for, without the vectors that are put aside."""
    numbers = tuple(0.0 if number in tab.aside else float(value) for number, value in enumerate(tab.values))
    for preset in mixer.presets(tab.aside):
        distances = [abs(a - b) for a, b in zip(numbers, preset.levels, strict=True)]
        if max(distances) <= STEP * (0.5 + _SAME):
            return Mixture(preset.coefficients, preset.label)
    return Mixture(numbers, None)


def text_of(mixer: Mixer, mixture: Mixture) -> str:
    """Return a mixture in words, in Markdown: the vectors that are used, with their coefficients."""
    terms = ["base"]
    for name, value in zip(mixer.names.values(), mixture.coefficients, strict=True):
        if level(value):
            terms.append(f"{level(value):.3f} {markdown(name)}")
    text = " + ".join(terms)
    return text if mixture.label is None else f"**{markdown(mixture.label)}**: {text}"


def view_of(mixer: Mixer, tab: Tab) -> View:
    """Return what the page shows for a tab."""
    mixture = mixture_at(mixer, tab)
    rows = _rows(mixer, mixture)
    notes = [text_of(mixer, mixture), *_notes(mixer, mixture, rows)]
    picture = ""
    point = mixer.point(mixture.coefficients)
    if mixer.prediction is not None and point is not None and tab.axes is not None:
        names = list(mixer.names.values())
        labels = (names[tab.axes[0]], names[tab.axes[1]])
        picture = draw_landscape(mixer.prediction, point, tab.axes, labels, slider_range(mixer))
    return View(mixture.label, loss_table(rows) if rows else "", "\n\n".join(notes), picture)


def _rows(mixer: Mixer, mixture: Mixture) -> list[LossRow]:
    """Return the rows of the table: a distribution in each, and in the last one what the search minimized."""
    measured_base = mixer.measured(mixer.base)
    measured = mixer.measured(mixture.coefficients)
    point = mixer.point(mixture.coefficients)
    prediction = mixer.prediction
    if prediction is None or point is None:
        return loss_rows(Losses(measured_base=measured_base, measured=measured))
    base = prediction.base_losses
    score = prediction.result.score
    if score is not None:
        rows = loss_rows(Losses(measured_base=measured_base, measured=measured))
        return [*rows, LossRow.of_score(score, prediction.objective(base), prediction.value(point))]
    rows = loss_rows(Losses(base, prediction.losses(point), measured_base, measured))
    last = LossRow(
        prediction.result.objective.kind,
        prediction.objective(base),
        prediction.value(point),
        prediction.objective(measured_base),
        prediction.objective(measured),
    )
    return [*rows, last]


def _notes(mixer: Mixer, mixture: Mixture, rows: Sequence[LossRow]) -> list[str]:
    """Return what a visitor should know of the numbers."""
    notes = []
    if any(not isinstance(value, float) for value in mixture.coefficients):
        notes.append("It has a coefficient for each group of tensors. A slider shows the mean of a vector's.")
    if mixer.prediction is None:
        notes.append("There is no search with quadratics to expect losses from. Merge, and read what the mixture says.")
    elif mixer.point(mixture.coefficients) is None:
        notes.append("Nothing is expected of this mixture: the search did not have all of it.")
    elif rows[-1].is_unsure:
        notes.append("This is far from what the search found, so that the expected losses are rough.")
    if any(row.is_of_other_data for row in rows):
        notes.append(
            "The base measures otherwise than in the search: the data of --data, or the dtype, are not those of the "
            "search, which holds out a part of its data. Compare how much is gained over the base (▼), not the losses "
            "themselves."
        )
    if not mixer.opening.data:
        notes.append(mixer.opening.no_data)
    return notes
