"""Values that were refused, as a message shows them: on one line, and short, whatever they are.

They may come from files of anybody: a number of a million digits, a text with line breaks, a list without end.
"""

from collections.abc import Sequence

# Characters of a message that show one value.
SHOWN = 60
_SHOWN_ENTRIES = 10
# Bits of a whole number whose digits are shown: those of the numbers that our files may have.
_MOST_BITS = 64


def shown(value: object) -> str:
    """Return a value that was refused as a message shows it: on one line, and no longer than 60 characters.

    Example:

    ```python
    >>> from dem_hub.files.shown import shown
    >>> shown("a\\nb"), len(shown(10**300))
    ("'a\\\\nb'", 20)

    ```
    """
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        text = f"a number of {value.bit_length()} bits"
    else:
        text = repr(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def shown_list(values: Sequence[object]) -> str:
    """Return the first ten of some values that were refused, as a message shows them."""
    text = ", ".join(map(shown, values[:_SHOWN_ENTRIES])) or "none"
    others = len(values) - _SHOWN_ENTRIES
    return text if others <= 0 else f"{text} and {others} others"
