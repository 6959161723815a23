"""Partial files and folders: what is being written beside a target, under a name of its own.

The name is `.NAME.<16 hex digits>.partial`, so that two writers are not in each other's way. A folder belongs to the
process that holds its lock. What killed processes left is found by the name, and deleted by the next writer of the
same target; what a living process writes is left alone.
"""

import re
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

from dem_hub.files.locks import held, release

_SUFFIX = ".partial"
_LOCK_SUFFIX = ".lock"
# Bytes of the random part of a name.
_RANDOM_BYTES = 8


def new_name(target: Path, place: Path | None = None) -> Path:
    """Return a name for a partial file or folder of a target, in the target's folder or in another one."""
    return (place or target.parent) / f".{target.name}.{secrets.token_hex(_RANDOM_BYTES)}{_SUFFIX}"


def is_partial_of(name: str, target: Path) -> bool:
    """Check whether a name is one that [`new_name`] gives."""
    return re.fullmatch(_pattern(target, _SUFFIX), name) is not None


class Partial:
    """A new partial folder, with a lock that says that its process lives.

    Attributes:
        folder (`Path`): The folder. It has the permissions that `mkdir` gives.
    """

    def __init__(self, target: Path, place: Path | None = None) -> None:
        """Make the folder, beside `target` or in another place.

        The caller holds the lock of `target`: nobody may take the new folder for one that was left, before it is
        locked.
        """
        self.folder = new_name(target, place)
        self.folder.mkdir()
        try:
            self._lock = held(self.folder.with_suffix(_LOCK_SUFFIX))
        except BaseException:
            self.folder.rmdir()
            raise

    def release(self) -> None:
        """Let go of the folder, which now has another name or may be deleted by anybody."""
        if self._lock is not None:
            release(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Delete the folder with everything in it, as far as it is still there."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


def remove_leftovers(target: Path, place: Path | None = None) -> None:
    """Delete the partial files and folders that killed processes left. The caller holds the lock of `target`."""
    folder = place or target.parent
    with suppress(OSError):
        paths = list(folder.iterdir())
        for path in paths:
            if is_partial_of(path.name, target):
                _remove(path)
        for path in paths:
            if re.fullmatch(_pattern(target, _LOCK_SUFFIX), path.name):
                _remove_lock(path)


def _remove(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        # A file is written while the lock of its target is held, so nobody writes this one.
        with suppress(OSError):
            path.unlink()
        return
    with suppress(OSError):
        lock = held(path.with_suffix(_LOCK_SUFFIX))
        if lock is not None:
            shutil.rmtree(path, ignore_errors=True)
            release(lock)


def _remove_lock(path: Path) -> None:
    """Delete the lock of a folder that is gone."""
    if path.with_suffix(_SUFFIX).exists():
        return
    with suppress(OSError):
        lock = held(path)
        if lock is not None:
            release(lock)


def _pattern(target: Path, suffix: str) -> str:
    return rf"\.{re.escape(target.name)}\.[0-9a-f]{{{2 * _RANDOM_BYTES}}}{re.escape(suffix)}"
