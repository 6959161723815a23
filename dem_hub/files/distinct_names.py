"""Short names of folders: as many last parts of their paths as tell them apart."""

from collections.abc import Sequence
from pathlib import Path


def distinct_names(folders: Sequence[Path]) -> list[tuple[str, ...]]:
    """Return a name for each folder: the last part of its path, with as many parts before it as tell them apart.

    Args:
        folders (`Sequence[Path]`): Different folders.

    Returns:
        `list[tuple[str, ...]]`: The parts, the folder's own name last.

    Example:

    ```python
    >>> from pathlib import Path
    >>> from dem_hub.files.distinct_names import distinct_names
    >>> distinct_names([Path("/runs/maths/checkpoint-500"), Path("/runs/chat/checkpoint-500"), Path("/runs/code")])
    [('maths', 'checkpoint-500'), ('chat', 'checkpoint-500'), ('code',)]

    ```
    """
    paths = [folder.resolve().parts for folder in folders]
    names = [path[-1:] for path in paths]
    for length in range(2, max(map(len, paths), default=0) + 1):
        names = [path[-length:] if names.count(name) > 1 else name for path, name in zip(paths, names, strict=True)]
    return names
