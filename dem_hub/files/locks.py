"""Locks of files and folders, across threads and processes: one writer at a time, and no wait without an end.

The lock of `NAME` is the file `.NAME.lock` beside it. The system lets go of it when its process ends, however it ends,
so a killed process leaves a file that nobody holds.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dem_hub.errors import BusyError
from dem_hub.files.names import STORE_CONFIG

if TYPE_CHECKING:
    from filelock import BaseFileLock

# Seconds to wait for another writer. What is done under a lock is a few renames and small files, or the removal of a
# folder; the large files are written before. Chosen by hand, not measured.
PATIENCE = 60.0

# Seconds between two tries to get a lock. A change under a lock takes a few milliseconds.
_INTERVAL = 0.005


# The locks that each thread holds.
_held = threading.local()


def lock_path(target: Path) -> Path:
    """Return the file that is locked while `target` is changed.

    A vector in a store is locked with the store, so that no lock is left in a store's folder.
    """
    if (target.parent / STORE_CONFIG).is_file():
        target = target.parent
    return target.with_name(f".{target.name}.lock")


@contextmanager
def locked(target: Path, seconds: float = PATIENCE) -> Iterator[None]:
    """Hold the lock of a file or folder. A thread that holds it already goes on, unless it does not wait.

    Args:
        target (`Path`): The file or folder. Its own folder must exist, and links to that must have been resolved by
            all callers or by none.
        seconds (`float`, *optional*): How long to wait for another holder; 0 is one try.

    Raises:
        [`~dem_hub.errors.BusyError`]: If another thread or process still holds it then.
    """
    from filelock import FileLock, Timeout

    lock_file = lock_path(target)
    own: set[Path] = _held.__dict__.setdefault("locks", set())
    if seconds > 0 and lock_file in own:
        yield
        return
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=seconds, poll_interval=_INTERVAL)
    except Timeout:
        raise BusyError(
            f"Another process is writing '{target}' ('{lock_file}' is locked). Wait for it, or name another folder."
        ) from None
    own.add(lock_file)
    try:
        yield
    finally:
        own.discard(lock_file)
        release(lock)


def held(lock_file: Path) -> "BaseFileLock | None":
    """Take a lock that nobody holds, for as long as its object is not released; `None` if somebody holds it."""
    from filelock import FileLock, Timeout

    # Any thread of this process may release it.
    lock = FileLock(lock_file, thread_local=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return None
    return lock


def release(lock: "BaseFileLock") -> None:
    """Give a lock back and delete its file."""
    if sys.platform != "win32":
        # Deleted before it is given back: afterwards another process may hold it. filelock, from 3.21 on, tries again
        # where it has got a file that is deleted. A file that cannot be deleted does no harm.
        with suppress(OSError):
            Path(lock.lock_file).unlink()
    lock.release()
