"""Sizes in bytes, as people write and read them.

Units are powers of ten (1 kB = 1000 bytes), as transformers and the Hub count: `"5GB"` means the same in every
argument of the ecosystem.
"""

import re

from dem_hub.errors import ConfigError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?B)", re.IGNORECASE)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_size(size: int | str) -> int:
    """Return a size in bytes, given as a number or as a text such as `"5GB"`.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the text is not a size.

    Example:

    ```python
    >>> from dem_hub.files.sizes import parse_size
    >>> parse_size("5GB"), parse_size("1.5 kB"), parse_size(12)
    (5000000000, 1500, 12)

    ```
    """
    if isinstance(size, int) or size.isdigit():
        return int(size)
    match = _SIZE.fullmatch(size.strip())
    if match is None:
        raise ConfigError(f"'{size}' is not a size. Write a number of bytes, or for instance '5GB'.")
    number, unit = match.groups()
    return int(float(number) * _UNITS[unit.upper()])


def format_size(nbytes: int) -> str:
    """Return a number of bytes as a text for people.

    Gigabytes have two decimals, because the free space on a disk is compared with them; smaller units have one.

    Example:

    ```python
    >>> from dem_hub.files.sizes import format_size
    >>> format_size(2_150_000_000), format_size(12_340_000), format_size(999), format_size(0)
    ('2.15 GB', '12.3 MB', '999 B', '0 B')

    ```
    """
    if nbytes >= 10**9:
        return f"{nbytes / 10**9:.2f} GB"
    if nbytes >= 10**6:
        return f"{nbytes / 10**6:.1f} MB"
    if nbytes >= 10**3:
        return f"{nbytes / 10**3:.1f} kB"
    return f"{nbytes} B"
