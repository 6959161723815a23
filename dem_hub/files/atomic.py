"""Files and folders that appear complete or not at all: they are written under another name, and then renamed.

One writer of a target at a time gives it its name, under the lock of the target ([`locked`]); several may write their
partial files at once. What killed writers left beside the target is deleted by the next one.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from dem_hub.files.locks import locked
from dem_hub.files.partial import Partial, new_name, remove_leftovers
from dem_hub.files.replacing import finish, is_journaled, put_in_place


@contextmanager
def atomic_file(path: Path, *, shared: bool = False) -> Iterator[Path]:
    """Yield a name under which a file is written; it gets the name `path` if the block ends without an error.

    Args:
        path (`Path`): The file.
        shared (`bool`, *optional*, defaults to `False`): Others may write the same file at the same time, so its lock
            is held meanwhile. Not needed in a partial folder, or in one whose own lock is held.
    """
    place = path.parent.resolve() / path.name
    with locked(place) if shared else nullcontext():
        remove_leftovers(place)
        partial = new_name(place)
        try:
            yield partial
            partial.replace(place)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str, *, shared: bool = False) -> None:
    """Write a small file, complete or not at all; see [`atomic_file`]."""
    with atomic_file(path, shared=shared) as partial:
        partial.write_text(text, "utf-8")


@contextmanager
def atomic_folder(
    target: Path,
    is_stale: Callable[[str], bool] | None = None,
    *,
    last: str = "",
    around: AbstractContextManager[object] | None = None,
) -> Iterator[Path]:
    """Yield a new folder that takes the name `target` when the block ends without an error, and is deleted otherwise.

    If `target` exists, the new folder takes its place in one step, with the files of `target` that it does not have
    itself. See [`put_in_place`] for the folders that cannot be replaced in one step.

    Args:
        target (`Path`): The folder.
        is_stale (`Callable[[str], bool]`, *optional*): Tells by its name which file of an older folder does not stay.
        last (`str`, *optional*): Name of the file that makes the others complete.
        around (`AbstractContextManager`, *optional*): Entered before the new folder takes its place, and left
            afterwards.

    Raises:
        [`~dem_hub.errors.BusyError`]: If another process is replacing the folder, and does not come to an end.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from dem_hub.files.atomic import atomic_folder
    >>> target = Path(tempfile.mkdtemp()) / "new"
    >>> with atomic_folder(target) as folder:
    ...     _ = (folder / "a.txt").write_text("whole")
    >>> (target / "a.txt").read_text()
    'whole'

    ```
    """
    place = target.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    # A rename must stay on one file system, and beside a mount point is another one.
    home = place if os.path.ismount(place) else place.parent
    with locked(place):
        finish(place)
        remove_leftovers(place, home)
        partial = Partial(place, home)
    try:
        yield partial.folder
        with around or nullcontext(), locked(place):
            finish(place)
            partial.release()
            put_in_place(partial.folder, place, is_stale, last)
    finally:
        if is_journaled(partial.folder, place):
            # The moves stopped half way. Whoever opens the folder next finishes them.
            partial.release()
        else:
            partial.remove()
