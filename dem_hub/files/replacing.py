"""One folder takes the place of another: readers see all of the old one or all of the new one.

The one step is an exchange of names. What stays of the old folder (a README, somebody's notes) is linked into the new
one before it. Some folders must keep their place: a mount point, the working directory of this process, a folder with
folders in it that others may be writing to, and every folder where the system has no exchange. There the files are
moved one by one. A journal, written first, says what belongs to the new state, and whoever opens the folder after a
kill finishes the moves ([`settle`]).
"""

import json
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from dem_hub.errors import ConfigError, DemHubError
from dem_hub.files.exchange import exchange
from dem_hub.files.foreign_names import check_inside
from dem_hub.files.json_types import fits
from dem_hub.files.locks import locked
from dem_hub.files.partial import is_partial_of
from dem_hub.files.shown import shown
from dem_hub.files.strict_json import read_json

# In the folder that is being replaced, until the last file has been moved.
JOURNAL = ".dem_hub_replacing.json"

# How often a folder is read again that was replaced meanwhile. A replacement takes longer than a read of the names.
_TRIES = 20

_Result = TypeVar("_Result")


def put_in_place(new: Path, target: Path, is_stale: Callable[[str], bool] | None = None, last: str = "") -> None:
    """Let a folder take the place of `target`. The caller holds the lock of `target`.

    Args:
        new (`Path`): The new folder, on the same file system, beside `target` or in it. Afterwards it is gone, or has
            what is left of the old one.
        target (`Path`): The folder to replace, if it exists. Files of it that `new` does not have stay.
        is_stale (`Callable[[str], bool]`, *optional*): Tells by its name which file of the old folder does not stay.
        last (`str`, *optional*): Name of the file that makes the others complete, moved last where files are moved
            one by one.
    """
    if not target.is_dir():
        new.replace(target)
        return
    names = {path.name for path in new.iterdir()}
    others = [path for path in target.iterdir() if path.name not in names and path != new]
    stale = []
    if is_stale is not None:
        stale = sorted(path.name for path in others if is_stale(path.name))
    kept = [path for path in others if path.name not in stale]
    # Of a folder that is in both, files that the new one lacks stay.
    is_in_both = any(path.is_dir() and (target / path.name).is_dir() for path in new.iterdir())
    if not is_in_both and not _must_keep_place(target, kept) and _link(kept, new):
        shutil.copystat(target, new)
        if exchange(new, target):
            _rescue(new, target, {path.name for path in others})
            return
        _unlink(kept, new)
    # Written in the new folder, so that its arrival in the old one is one rename.
    journal = new / JOURNAL
    journal.write_text(json.dumps({"from": os.path.relpath(new, target), "remove": stale, "last": last}), "utf-8")
    journal.replace(target / JOURNAL)
    finish(target)


def is_journaled(new: Path, target: Path) -> bool:
    """Check whether the files of `new` are being moved into `target`, and must not be deleted."""
    journal = _read(target)
    return journal is not None and journal[0] == new


def settle(target: Path) -> None:
    """Finish what a killed process began to move into a folder, once a living one is done with it.

    Raises:
        [`~dem_hub.errors.BusyError`]: If another process holds the folder's lock for too long.
        `OSError`: If the folder cannot be written.
    """
    # No lock, and nothing but one look, for a folder that is as it should be.
    if (target / JOURNAL).is_file():
        place = target.resolve()
        with locked(place):
            finish(place)


def finish(target: Path) -> None:
    """Finish what a killed process began to move into a folder. The caller holds its lock."""
    journal = _read(target)
    if journal is None:
        return
    new, stale, last = journal
    for name in stale:
        (target / name).unlink(missing_ok=True)
    paths: list[Path] = []
    if new.is_dir():
        paths = sorted(new.iterdir(), key=lambda path: (path.name == last, path.name))
    for path in paths:
        _move(path, target / path.name)
    (target / JOURNAL).unlink()
    with suppress(OSError):  # it is empty, and the next writer would delete it as well
        new.rmdir()


def read_steadily(folder: Path, read: Callable[[], _Result]) -> _Result:
    """Read a folder, and read it again if that failed and the folder was replaced meanwhile.

    Args:
        folder (`Path`): The folder.
        read (`Callable[[], T]`): Reads it. It must fail if it sees files of two states.
    """
    for _ in range(_TRIES):
        settle(folder)
        before = _identity(folder)
        try:
            return read()
        except (DemHubError, OSError):
            if _identity(folder) == before and not (folder / JOURNAL).is_file():
                raise
    return read()


def _must_keep_place(target: Path, kept: Iterable[Path]) -> bool:
    if os.path.ismount(target):
        return True
    with suppress(OSError):  # the working directory may be gone
        if Path.cwd().is_relative_to(target):
            return True
    # Whoever writes into a folder below would write into the old one.
    return any(path.is_dir() and not path.is_symlink() for path in kept)


def _link(kept: Iterable[Path], new: Path) -> bool:
    """Give files a second name in the new folder; `False`, and no second names, where that cannot be."""
    try:
        for path in kept:
            os.link(path, new / path.name, follow_symlinks=False)
    except OSError:
        _unlink(kept, new)
        return False
    return True


def _unlink(kept: Iterable[Path], new: Path) -> None:
    """Take away the second names that [`_link`] gave. The files stay under their first names."""
    for path in kept:
        (new / path.name).unlink(missing_ok=True)


def _rescue(old: Path, target: Path, known: set[str]) -> None:
    """Move into the new folder what somebody put into the old one at the last moment."""
    for path in old.iterdir():
        place = target / path.name
        if path.name not in known and not os.path.lexists(place):
            path.replace(place)


def _move(path: Path, place: Path) -> None:
    if place.is_dir() and not place.is_symlink() and path.is_dir():
        for inner in sorted(path.iterdir()):
            _move(inner, place / inner.name)
        path.rmdir()
        return
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    path.replace(place)


def _read(target: Path) -> tuple[Path, list[str], str] | None:
    """Return what the journal of a folder says: where the new files are, what goes, and what comes last.

    The journal may come with a folder from anybody, so it can name nothing but a partial folder of this one, and
    files in it.
    """
    path = target / JOURNAL
    try:
        data = read_json(path)
    except FileNotFoundError:
        return None
    if not fits(list[str] | None, data.get("remove")):
        raise ConfigError(
            f"{path} has remove {shown(data['remove'])}, which is not a list of names. Remove {path.name}."
        )
    source = str(data.get("from"))
    stale = [str(name) for name in data.get("remove") or ()]
    name = source.removeprefix("../")
    if not is_partial_of(name, target) and name != f".{target.name}.partial":
        raise ConfigError(f"{path} names '{source}', which is no partial folder of '{target}'. Remove {path.name}.")
    for entry in stale:
        check_inside(entry, f"file in {path}")
    new = target.parent / name if source.startswith("../") else target / name
    return new, stale, str(data.get("last", ""))


def _identity(folder: Path) -> tuple[int, ...]:
    """Return what changes when a folder is replaced, or when a file in it is."""
    try:
        status = folder.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns
