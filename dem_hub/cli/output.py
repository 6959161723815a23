"""Tables that several commands print on stdout."""

from collections.abc import Sequence

from dem_hub.hub.report import Table


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns under their heads, without control characters of others.

    The first column is aligned to the left, the others to the right.
    """
    return Table(head, rows).text()
