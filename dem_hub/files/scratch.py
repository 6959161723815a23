"""Temporary folders in the system's place for them. What killed runs left there is deleted by the next run.

They lie in a folder that is this user's alone, since anybody may put files of any name into the system's place. Each
has a lock that says that its process lives.
"""

import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from dem_hub.files.locks import locked
from dem_hub.files.partial import Partial, remove_leftovers


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield a temporary folder that is deleted when the block ends, or by the next run if this one is killed."""
    target = _own_place() / "scratch"
    with locked(target):
        remove_leftovers(target)
        scratch = Partial(target)
    try:
        yield scratch.folder
    finally:
        scratch.remove()


def _own_place() -> Path:
    """Return this user's folder in the system's place for temporary files."""
    if sys.platform == "win32":  # where the system's place is the user's own
        place = Path(tempfile.gettempdir(), "dem_hub")
        place.mkdir(exist_ok=True)
        return place
    place = Path(tempfile.gettempdir(), f"dem_hub-{os.getuid()}")
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    status = place.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
        # Somebody else was here first, and could change what is written there.
        place = Path(tempfile.mkdtemp(prefix="dem_hub-"))
    return place
