"""A partially written folder, which an interrupted process leaves behind and the next one resumes.

It has a fixed name next to the target (`.NAME.partial`), so that the next process finds it. A journal in it records
its purpose and how many bytes are known to be on the disk: the files are synchronized first (fsync), then the
journal is written, both in the background. A partial folder with another purpose is deleted. A lock admits one
writer for each target.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from dem_hub.errors import DemHubError
from dem_hub.files.atomic import write_text
from dem_hub.files.locks import locked
from dem_hub.files.partial import remove_leftovers
from dem_hub.files.replacing import finish, is_journaled, put_in_place

# Bytes between two records in the journal, and so about what is written twice after an interruption: a second or
# two of a disk. Chosen by hand, not measured.
STRIDE = 1 << 30

_JOURNAL = ".journal.json"


class PartialFolder:
    """A partial folder while it is written.

    `folder` is its path. `written` is the number of bytes that were recorded when it was opened, of `total` in the
    end.
    """

    def __init__(self, folder: Path, purpose: str, total: int) -> None:
        self.folder = folder
        self.written = recorded_bytes(folder, purpose)
        self._purpose = purpose
        self._total = total
        self._recorded = self.written
        self._recorder = ThreadPoolExecutor(1)
        self._latest: Future[None] | None = None

    def record(self, written: int) -> None:
        """Record in the background that the first `written` bytes are in the files.

        A resumed run continues after them. The record is made at most once for `STRIDE` bytes, not for the last
        `STRIDE`, and not while an earlier record is being written.
        """
        is_worth_it = written - self._recorded >= STRIDE and self._total - written >= STRIDE
        is_recording = self._latest is not None and not self._latest.done()
        if not is_worth_it or is_recording:
            return
        self.wait()
        self._recorded = written
        self._latest = self._recorder.submit(self._record, written)

    def wait(self) -> None:
        """Wait for the record that is being written, and raise its error if it failed."""
        if self._latest is not None:
            self._latest.result()

    def close(self) -> None:
        """End the thread that writes records."""
        self._recorder.shutdown()

    def _record(self, written: int) -> None:
        for path in self.folder.rglob("*"):
            # A small file is written under another name and renamed, so a name may be gone by now.
            with suppress(FileNotFoundError, IsADirectoryError), path.open("r+b") as stream:
                os.fsync(stream.fileno())
        write_text(self.folder / _JOURNAL, json.dumps({"purpose": self._purpose, "written": written}))


def partial_path(target: Path) -> Path:
    """Return the path of the partial folder of a target."""
    resolved = target.resolve()
    return resolved.with_name(f".{resolved.name}.partial")


def recorded_bytes(folder: Path, purpose: str) -> int:
    """Return how many bytes are known to be on the disk; 0 if the folder is missing or has another purpose."""
    # A damaged journal counts as none: the folder is then written from its beginning.
    with suppress(OSError, ValueError, KeyError, TypeError):
        journal = json.loads((folder / _JOURNAL).read_text("utf-8"))
        if journal["purpose"] == purpose:
            return int(journal["written"])
    return 0


@contextmanager
def resumable_folder(
    target: Path, purpose: str, total: int, last: str, is_stale: Callable[[str], bool] | None = None
) -> Iterator[PartialFolder]:
    """Yield a partial folder that becomes `target` when the block ends without an error.

    A refusal of dem_hub deletes the partial folder, since the next run would be refused too. Anything else (a kill,
    an interrupt, a full disk) leaves the partial folder, and the next call with the same purpose continues in it.
    A `target` that exists is replaced as [`put_in_place`] does it, and is whole until then.

    Args:
        target (`Path`): The folder.
        purpose (`str`): Everything that decides the bytes, for instance as a hash.
        total (`int`): The number of bytes in the end.
        last (`str`): The name of the file that makes the others complete.
        is_stale (`Callable[[str], bool]`, *optional*): Tells by its name which file of an older `target` does not
            stay.

    Raises:
        [`~dem_hub.errors.BusyError`]: If another process writes to this target.
    """
    place = target.resolve()
    place.parent.mkdir(parents=True, exist_ok=True)
    folder = partial_path(target)
    # One try: an export takes minutes, and a second one to the same place is a mistake.
    with locked(place, seconds=0):
        try:
            finish(place)
            remove_leftovers(place)
            if recorded_bytes(folder, purpose) == 0:
                shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(exist_ok=True)
            partial = PartialFolder(folder, purpose, total)
            try:
                yield partial
                partial.wait()
            finally:
                partial.close()
            _move_into_place(folder, place, is_stale, last)
        except DemHubError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        except BaseException as error:
            error.add_note(f"The files written so far are kept in '{folder}'. The same command continues from there.")
            raise


def _move_into_place(folder: Path, target: Path, is_stale: Callable[[str], bool] | None, last: str) -> None:
    (folder / _JOURNAL).unlink(missing_ok=True)
    put_in_place(folder, target, is_stale, last)
    if not is_journaled(folder, target):
        # What is left in it is the older folder.
        shutil.rmtree(folder, ignore_errors=True)
