"""The folder of a vector: replace what is in it as a whole, on this machine and on the Hub.

A new vector may have fewer files than the one it replaces (no adapter, fewer shards, no input statistics). Files of
the older vector that stayed would belong to no vector, so they are removed. Other files in the folder are left alone:
a README, or the user's own notes.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatch
from pathlib import Path

from dem_hub.files.atomic import atomic_folder
from dem_hub.files.names import STATISTICS_FILES, VECTOR_CONFIG, VECTOR_FILES
from dem_hub.hub.commits import Head


@contextmanager
def replaced_folder(target: Path, around: AbstractContextManager[object] | None = None) -> Iterator[Path]:
    """Give a temporary folder for the files of a new vector. When the block ends well, they replace those in `target`.

    Files of an older vector go in the same step.

    Args:
        target (`Path`): The folder of the vector. It is created if it does not exist.
        around (`AbstractContextManager`, *optional*): Entered before the files take their place, and left afterwards.
    """
    with atomic_folder(target, _goes_with_vector, last=VECTOR_CONFIG, around=around) as folder:
        yield folder


def place_file(source: Path, target: Path, *, link: bool) -> None:
    """Put a file under another name.

    Args:
        source (`Path`): The file.
        target (`Path`): Its new name.
        link (`bool`): Make a hard link, which takes no time and no space. Only for files that nothing else uses:
            what is written into one name is then written into both.
    """
    if link:
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, target)
    else:
        shutil.copyfile(source, target)


def stale_files(head: Head, prefix: str, files: Mapping[str, Path | str]) -> frozenset[str]:
    """Return the files of an older vector that a push to the same place removes.

    Args:
        head ([`Head`]): The repository as it is now.
        prefix (`str`): Where the vector is in it: empty, or the subfolder with a slash at the end.
        files (`Mapping[str, Path | str]`): The files that are pushed, by path in the repository.
    """
    stale = set()
    for path in head.files:
        name = path.removeprefix(prefix)
        is_beside = path.startswith(prefix) and "/" not in name
        if is_beside and path not in files and _goes_with_vector(name):
            stale.add(path)
    return frozenset(stale)


def is_vector_file(name: str) -> bool:
    """Check whether a name is that of a file of some vector."""
    return any(fnmatch(name, pattern) for pattern in VECTOR_FILES)


def _goes_with_vector(name: str) -> bool:
    """Check whether a file is one of a vector, or is about that vector alone."""
    return is_vector_file(name) or name in STATISTICS_FILES
