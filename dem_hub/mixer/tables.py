"""The table of losses, as HTML: the base, what is expected of a mixture, and what was measured of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from dem_hub.hub.foreign_text import printable
from dem_hub.search.prediction import UNSURE, Expected

_HEAD = ("loss, nats a token", "base", "expected", "may be off by", "measured")
_NOTHING = "-"
_LEGEND = "Lower is better. ▼ is lower than the base, ▲ higher."


@dataclass(frozen=True)
class Losses:
    """Losses by distribution: what a search knows of its own data, and what was measured on those of the mixer.

    `base` and `measured_base` are of the base; they differ where the data, or the dtype of the model, do.
    """

    base: Mapping[str, float] = field(default_factory=dict)
    expected: Mapping[str, Expected] = field(default_factory=dict)
    measured_base: Mapping[str, float] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class LossRow:
    """One row of the table: a distribution, or the objective over all. What is not known is `None`.

    A loss is compared with the base's on the same data: an expected one with `base`, a measured one with
    `measured_base`.
    """

    label: str
    base: float | None = None
    expected: Expected | None = None
    measured_base: float | None = None
    measured: float | None = None

    @property
    def is_of_other_data(self) -> bool:
        """Whether what was measured cannot be compared with what is expected: the base itself has another loss."""
        if self.base is None or self.measured_base is None:
            return False
        return abs(self.base - self.measured_base) > UNSURE


def loss_rows(losses: Losses) -> list[LossRow]:
    """Return a row for each distribution that anything is known of."""
    names = {**losses.expected, **losses.base, **losses.measured_base, **losses.measured}
    rows = []
    for name in names:
        row = LossRow(
            name,
            losses.base.get(name),
            losses.expected.get(name),
            losses.measured_base.get(name),
            losses.measured.get(name),
        )
        rows.append(row)
    return rows


def loss_table(rows: Sequence[LossRow]) -> str:
    """Return the rows as a table of HTML. A number that is lower than the base's has a mark after it, for the eye."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in _HEAD)
    lines = []
    for row in rows:
        expected = _NOTHING if row.expected is None else _compared(row.expected.loss, row.base)
        measured = _compared(row.measured, row.measured_base)
        base = row.measured_base if row.base is None else row.base
        cells = [_number(base), expected, _error(row.expected), measured]
        label = f"<th>{escape(printable(row.label))}</th>"
        lines.append(f"<tr>{label}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    table = f'<table class="losses"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return f'{table}<p class="legend">{_LEGEND}</p>'


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.4f}"


def _compared(value: float | None, base: float | None) -> str:
    """Return a loss with its difference from the base's."""
    if value is None or base is None:
        return _number(value)
    difference = value - base
    if abs(difference) < 5e-5:  # less than the digits that are shown
        return _number(value)
    kind, mark = ("lower", "▼") if difference < 0 else ("higher", "▲")
    return f'{_number(value)} <span class="{kind}">{mark} {abs(difference):.4f}</span>'


def _error(expected: Expected | None) -> str:
    if expected is None:
        return _NOTHING
    if expected.error is None:
        return '<span class="unsure">not known</span>'
    text = f"±{expected.error:.4f}"
    return f'<span class="unsure">{text}</span>' if expected.error > UNSURE else text
