"""Names of vectors, distributions and tensors as labels: harmless, and short enough for their place."""

from dem_hub.hub.foreign_text import printable


def label(name: str, longest: int = 26) -> str:
    """Return a name as a label; of a long one the beginning and the end.

    Example:

    ```python
    >>> from dem_hub.plotting.labels import label
    >>> label("maths"), label("a-vector-with-a-very-long-name-v2", 16)
    ('maths', 'a-vector…name-v2')

    ```
    """
    shown = printable(name)
    if len(shown) <= longest:
        return shown
    end = (longest - 1) // 2
    return f"{shown[: longest - 1 - end]}…{shown[-end:]}"


def number(value: float, digits: int = 3) -> str:
    """Return a number as a label, with a real minus sign."""
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")
