"""A folder in the making, which a killed process leaves behind and the next one goes on with.

It lies beside the folder that it will become, under one name, so that the next process finds it. A journal in it says what it is for
and how many bytes of that are on the disk for sure: they are synchronised first and noted then, in the background. Whatever is for
something else is removed, and only one process at a time may write to a target.
"""

import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from dem_hub.errors import BusyError, DemHubError
from dem_hub.files.atomic import write_text

STRIDE = 1 << 30  # bytes between two notes, and so about what is done twice after a kill
_JOURNAL = ".journal.json"


class Unfinished:
    """The folder in the making: `written` bytes of `total` were there when it was opened."""

    def __init__(self, folder: Path, purpose: str, total: int) -> None:
        self.folder, self.written = folder, written_before(folder, purpose)
        self._purpose, self._total, self._noted = purpose, total, self.written
        self._notes = ThreadPoolExecutor(1)
        self._last: Future[None] | None = None

    def note(self, written: int) -> None:
        """Note that the first so many bytes are in files of the folder, if that is worth it by now; another process begins after them."""
        if min(written - self._noted, self._total - written) < STRIDE or (
            self._last is not None and not self._last.done()
        ):
            return
        self.settle()
        self._noted = written
        self._last = self._notes.submit(self._note, written)

    def settle(self) -> None:
        """Wait for what is being noted."""
        if self._last is not None:
            self._last.result()

    def close(self) -> None:
        """End the thread that notes."""
        self._notes.shutdown()

    def _note(self, written: int) -> None:
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError), path.open("r+b") as stream:  # small files take their names meanwhile
                os.fsync(stream.fileno())
        write_text(self.folder / _JOURNAL, json.dumps({"purpose": self._purpose, "written": written}))


def unfinished_folder(target: Path) -> Path:
    """Where a target is in the making."""
    place = target.resolve()
    return place.with_name(f".{place.name}.partial")


def written_before(folder: Path, purpose: str) -> int:
    """How many bytes of something are on the disk for sure in an unfinished folder; 0 where it is for something else."""
    with suppress(OSError, ValueError, KeyError, TypeError):  # a journal that came to harm counts for nothing
        found = json.loads((folder / _JOURNAL).read_text("utf-8"))
        return int(found["written"]) if found["purpose"] == purpose else 0
    return 0


@contextmanager
def unfinished(target: Path, purpose: str, total: int, last: str) -> Iterator[Unfinished]:
    """A folder in the making that becomes `target` when the block ends well.

    What dem_hub refuses leaves nothing behind, since it would be refused again. Anything else (a kill, an interrupt, a full disk) leaves the
    folder, and the next call for the same purpose goes on with it. Files that are in `target` already and are not written again stay.

    Args:
        target (`Path`): the folder.
        purpose (`str`): all that decides about the bytes, for instance as a hash.
        total (`int`): how many bytes there will be.
        last (`str`): the file with which the others are whole; into a `target` that is there it moves after them.

    Raises:
        `BusyError`: another process writes to this target.
    """
    from filelock import FileLock, Timeout

    place, folder = target.resolve(), unfinished_folder(target)
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_suffix(".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise BusyError(
            f"Another process is writing '{target}' ('{lock.lock_file}' is locked). Wait for it, or name another folder."
        ) from None
    try:
        if not written_before(folder, purpose):
            shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(exist_ok=True)
        work = Unfinished(folder, purpose, total)
        try:
            yield work
            work.settle()
        finally:
            work.close()
        _put_in_place(folder, place, last)
    except DemHubError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except BaseException as error:
        error.add_note(f"What was written is kept in '{folder}', and the same command goes on from there.")
        raise
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _put_in_place(folder: Path, target: Path, last: str) -> None:
    (folder / _JOURNAL).unlink(missing_ok=True)
    if not target.is_dir():
        folder.replace(target)
        return
    for path in sorted(folder.iterdir(), key=lambda path: path.name == last):
        path.replace(target / path.name)
    folder.rmdir()
