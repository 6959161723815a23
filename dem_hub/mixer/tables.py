"""The table of losses, as HTML: the base, what is expected of a mixture, and what was measured of it.

A search for a score has one row, with the score's own name and sign.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from dem_hub.hub.foreign_text import printable
from dem_hub.search.measure.score_evaluator import Score
from dem_hub.search.prediction import UNSURE, Expected

_LOSS = "loss, nats a token"
_SCORE = "score"
_HEAD = ("base", "expected", "may be off by", "measured")
_NOTHING = "-"
_MARKS = "▼ is lower than the base, ▲ higher."
_EXPECTED = (
    "Expected: worked out from what the search measured, for its validation data. May be off by: judged by how far "
    "that is off at the search's other trials; one number for all rows, which grows with the distance from what the "
    "search found. Measured: after a merge, on the data of --data."
)


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
    """One row of the table: a distribution, the objective over all, or a score. What is not known is `None`.

    A loss is compared with the base's on the same data: an expected one with `base`, a measured one with
    `measured_base`. `score` is that of a row with its values, which then have its own sign.
    """

    label: str
    base: float | None = None
    expected: Expected | None = None
    measured_base: float | None = None
    measured: float | None = None
    score: Score | None = None

    @classmethod
    def of_score(cls, score: Score, base: float | None, expected: Expected) -> "LossRow":
        """Return the row of a score, from the losses that stand for it. No data is measured with a score."""
        own_base = None if base is None else score.own(base)
        return cls(score.name, own_base, Expected(score.own(expected.loss), expected.error), score=score)

    @property
    def higher_is_better(self) -> bool:
        """True if the row is of a score that was maximized."""
        return self.score is not None and self.score.higher_is_better

    @property
    def is_unsure(self) -> bool:
        """Whether an expected loss may be far off. What is far for a score, nobody knows."""
        if self.expected is None:
            return False
        if self.expected.error is None:
            return True
        return self.score is None and self.expected.error > UNSURE

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
    """Return the rows as a table of HTML. A number that is not the base's has a mark after it, for the eye."""
    kinds = dict.fromkeys(_LOSS if row.score is None else _SCORE for row in rows)
    head = "".join(f"<th>{escape(cell)}</th>" for cell in (" or ".join(kinds), *_HEAD))
    lines = []
    for row in rows:
        expected = _NOTHING if row.expected is None else _compared(row, row.expected.loss, row.base)
        measured = _compared(row, row.measured, row.measured_base)
        base = row.measured_base if row.base is None else row.base
        cells = [_number(base), expected, _error(row), measured]
        label = f"<th>{escape(printable(row.label))}</th>"
        lines.append(f"<tr>{label}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    table = f'<table class="losses"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'
    return f'{table}<p class="legend">{escape(_legend(rows))}</p>'


def _legend(rows: Sequence[LossRow]) -> str:
    """Return which way is better, and what the marks say."""
    ways = []
    for row in rows:
        way = "Lower is better."
        if row.score is not None:
            way = f"{printable(row.label)}: {row.score.better} is better."
        if way not in ways:
            ways.append(way)
    legend = [*ways, _MARKS]
    if any(row.expected is not None for row in rows):
        legend.append(_EXPECTED)
    return " ".join(legend)


def _number(value: float | None) -> str:
    return _NOTHING if value is None else f"{value:.4f}"


def _compared(row: LossRow, value: float | None, base: float | None) -> str:
    """Return a loss with its difference from the base's, in a color that says whether it is better."""
    if value is None or base is None:
        return _number(value)
    difference = value - base
    if abs(difference) < 5e-5:  # less than the digits that are shown
        return _number(value)
    mark = "▼" if difference < 0 else "▲"
    kind = "better" if (difference > 0) == row.higher_is_better else "worse"
    return f'{_number(value)} <span class="{kind}">{mark} {abs(difference):.4f}</span>'


def _error(row: LossRow) -> str:
    if row.expected is None:
        return _NOTHING
    text = "not known" if row.expected.error is None else f"±{row.expected.error:.4f}"
    return f'<span class="unsure">{text}</span>' if row.is_unsure else text
