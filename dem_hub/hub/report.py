"""Reports: what `print` and a notebook show of a thing, as a title, tables and lines.

One record is written as text for a terminal and as HTML for a notebook, so that both say the same. Everything in it may
be text of others, and is made harmless in both.
"""

import html
import shutil
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from dem_hub.hub.foreign_text import printable

# MathJax, which notebooks run over their outputs, would take two dollars in a name for a formula.
_CLASSES = "dem-hub tex2jax_ignore mathjax_ignore"


@dataclass(frozen=True)
class Table:
    """A table: the heads of its columns, and rows of as many cells. The first column is of names, the others of numbers.

    Example:

    ```python
    >>> from dem_hub.hub.report import Table
    >>> print(Table(("vector", "coefficient"), (("maths", "+0.4"), ("a <b>", "+0.25"))).text())
    vector  coefficient
    maths          +0.4
    a <b>         +0.25

    ```
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def text(self) -> str:
        """Return columns under their heads, the first one aligned to the left and the others to the right."""
        lines = [[printable(cell) for cell in line] for line in (self.head, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        texts = []
        for line in lines:
            cells = [line[0].ljust(widths[0])]
            for cell, width in zip(line[1:], widths[1:], strict=True):
                cells.append(cell.rjust(width))
            texts.append("  ".join(cells).rstrip())
        return "\n".join(texts)

    def html(self) -> str:
        """Return the table as HTML."""
        rows = [_row("th", self.head), *(_row("td", row) for row in self.rows)]
        return f"<table>{''.join(rows)}</table>"


@dataclass(frozen=True)
class Report:
    """What is shown of a thing: a title, and below it tables and paragraphs of lines, in order.

    Example:

    ```python
    >>> from dem_hub.hub.report import Report, Table
    >>> report = Report("me/my-dem", (Table(("vector", "coefficient"), (("maths", "+0.4"),)), ("two lines", "of text")))
    >>> print(report.text())
    me/my-dem
    <BLANKLINE>
    vector  coefficient
    maths          +0.4
    <BLANKLINE>
    two lines
    of text

    ```
    """

    title: str
    parts: Sequence[Table | Sequence[str]]

    def text(self) -> str:
        """Return the report for a terminal, without control characters."""
        texts = [printable(self.title)]
        for part in self.parts:
            if isinstance(part, Table):
                texts.append(part.text())
            else:
                texts.append("\n".join(map(printable, part)))
        return "\n\n".join(texts)

    def html(self) -> str:
        """Return the report as HTML for a notebook, for `_repr_html_`."""
        texts = [f"<p><strong>{_escape(self.title)}</strong></p>"]
        for part in self.parts:
            if isinstance(part, Table):
                texts.append(part.html())
            else:
                texts += [f"<p>{_escape(line)}</p>" for line in part]
        return f'<div class="{_CLASSES}">{"".join(texts)}</div>'


def wrapped(text: str) -> str:
    """Return a message with lines that end between words, where stderr is a terminal, which ends them anywhere."""
    if not sys.stderr.isatty():
        return text
    width = shutil.get_terminal_size().columns
    wrapper = textwrap.TextWrapper(width, break_long_words=False, break_on_hyphens=False)
    return "\n".join(map(wrapper.fill, text.split("\n")))


def _row(tag: str, cells: Sequence[str]) -> str:
    """Return a row of a table. The style is in each cell, as notebooks remove style sheets and align all to the right."""
    texts = []
    for place, cell in enumerate(cells):
        side = "right" if place else "left"
        texts.append(f'<{tag} style="text-align: {side}">{_escape(cell)}</{tag}>')
    return f"<tr>{''.join(texts)}</tr>"


def _escape(text: str) -> str:
    return html.escape(printable(text))
