"""The table of losses, as HTML: the base, what is expected of a mixture, and what was measured of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from dem_hub.hub.foreign_text import printable
from dem_hub.mixer.prediction import Expected

# Nats. An expected loss that may be off by more is marked: mixtures differ by about as much.
UNSURE = 0.01

_HEAD = ("loss, nats a token", "base", "expected", "may be off by", "measured")
_NOTHING = "-"


@dataclass(frozen=True)
class LossRow:
    """One row of the table: a distribution, or the objective over all. What is not known is `None`."""

    label: str
    base: float | None = None
    expected: Expected | None = None
    measured: float | None = None


def loss_rows(
    base: Mapping[str, float], expected: Mapping[str, Expected], measured: Mapping[str, float]
) -> list[LossRow]:
    """Return a row for each distribution that anything is known of."""
    names = {**expected, **base, **measured}
    return [LossRow(name, base.get(name), expected.get(name), measured.get(name)) for name in names]


def loss_table(rows: Sequence[LossRow]) -> str:
    """Return the rows as a table of HTML. A number that is lower than the base's has a mark before it, for the eye."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in _HEAD)
    lines = []
    for row in rows:
        expected = _NOTHING if row.expected is None else _compared(row.expected.loss, row.base)
        cells = [_number(row.base), expected, _error(row.expected), _compared(row.measured, row.base)]
        label = f"<th>{escape(printable(row.label))}</th>"
        lines.append(f"<tr>{label}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    return f'<table class="losses"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


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
