"""Sizes in bytes, as people write and read them."""

import re

from dem_hub.errors import CheckpointError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)", re.IGNORECASE)


_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(size: int | str) -> int:
    """A size in bytes: a number, or a text such as `"5GB"` (powers of ten, as in transformers).

    Raises:
        `CheckpointError`: the text is no size.

    Example:

    ```python
    >>> from dem_hub.checkpoints.writer import parse_size
    >>> parse_size("5GB")
    5000000000

    ```
    """
    if isinstance(size, int) or size.isdigit():
        return int(size)
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise CheckpointError(f"'{size}' is not a size. Write a number of bytes, or for instance '5GB'.")
    return int(float(match[1]) * _UNITS[match[2].upper()])
