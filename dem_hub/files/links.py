"""Symbolic links in a folder that may come from somebody else: none is followed out of that folder.

An archive or a git repository can hold a link to any path of the machine on which it is unpacked. A file behind such
a link is not read, copied or pushed. A link that stays in the folder is followed, and so are the links of the Hub's
cache, whose snapshots are links to blobs of the same repository.
"""

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from dem_hub.errors import ConfigError, refuse

# The name of a blob in the Hub's cache: a sha256, or the id of a blob in git.
_BLOB = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")


def leads_out(path: Path, root: Path) -> bool:
    """Check whether a path goes through a link to a place outside of a folder.

    Args:
        path (`Path`): A path below `root`.
        root (`Path`): The folder. It may be named by a link itself, because the caller named it.
    """
    if path.resolve().is_relative_to(root.resolve()):
        return False
    return not _is_snapshot_file(path)


def check_paths(paths: Iterable[Path], root: Path) -> None:
    """Refuse paths of a folder that lead out of it by a link, at their end or on the way.

    Args:
        paths (`Iterable[Path]`): Paths below `root`.
        root (`Path`): The folder. It may be named by a link itself, because the caller named it.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If there are such paths. All of them are listed, with where they lead.
    """
    faults = [f"'{path.relative_to(root)}' leads to '{path.resolve()}'" for path in paths if leads_out(path, root)]
    if faults:
        refuse(
            ConfigError,
            f"'{root}' has links that lead out of it, which are not followed.",
            faults,
            "Put the files themselves in their places if they are yours. Do not use a folder of somebody else with "
            "such links.",
        )


def check_links(folder: Path, patterns: Iterable[str], root: Path | None = None) -> None:
    """Refuse links that lead out of a folder, among the files with names of some patterns.

    Args:
        folder (`Path`): The folder that the files are in.
        patterns (`Iterable[str]`): Glob patterns of the names of the files that are wanted from it.
        root (`Path`, *optional*): The folder that links may not leave. Defaults to `folder`.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If there are such links. All of them are listed, with what they point at.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from dem_hub.files.links import check_links
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "tokenizer.json").symlink_to("/etc/passwd")
    >>> check_links(folder, ["*.json"])
    Traceback (most recent call last):
    dem_hub.errors.ConfigError: '...' has links that lead out of it, which are not followed.
      - 'tokenizer.json' leads to '/etc/passwd'
    Put the files themselves in their places if they are yours. Do not use a folder of somebody else with such links.

    ```
    """
    top = folder if root is None else root
    wanted = tuple(patterns)
    check_paths([folder], top)
    if folder.is_dir():
        links = [path for path in sorted(folder.iterdir()) if path.is_symlink()]
        check_paths([path for path in links if any(fnmatch(path.name, pattern) for pattern in wanted)], top)


def check_link(path: Path) -> None:
    """Refuse one file if it is a link that leads out of the folder in which it lies.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it is.
    """
    check_paths([path], path.parent)


def _is_snapshot_file(path: Path) -> bool:
    """Check whether a path is a link of a snapshot in the Hub's cache to a blob of the same repository."""
    if not path.is_symlink():
        return False
    place = path.parent.resolve()
    blob = Path(os.path.normpath(place / path.readlink()))
    repository = blob.parent.parent
    is_in_cache = blob.parent.name == "blobs" and place.is_relative_to(repository / "snapshots")
    return is_in_cache and bool(_BLOB.fullmatch(blob.name)) and not blob.is_symlink()
