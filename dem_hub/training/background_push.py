"""Push vectors in the background of a training run: one thread, one push at a time.

If several vectors wait, only the newest is pushed.

A snapshot is pushed (hard links, if the file system has them), so the folder may change meanwhile. A failed push is
logged at once and tried again. Nothing is raised into the training run.
"""

import logging
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dem_hub.errors import DemHubError, HubError
from dem_hub.files.locks import locked
from dem_hub.files.partial import Partial
from dem_hub.hub.failures import is_transient
from dem_hub.vectors.folder import place_file

logger = logging.getLogger(__name__)

# Seconds before each further attempt. The Hub's client has tried again by itself before an error gets here. Chosen
# by hand, not measured.
DELAYS = (2.0, 10.0, 60.0)


class Uploader:
    """Pushes snapshots of a folder, one after the other.

    Args:
        push (`Callable[[Path], Any]`): A function that pushes one folder, and raises if it cannot.
        target (`str`): Name of the destination, for messages.
    """

    def __init__(self, push: Callable[[Path], Any], target: str) -> None:
        self.failure: Exception | None = None  # of the newest push; `None` once it succeeded
        self._missed: Exception | None = None  # why there is no snapshot of a still newer vector
        self._push = push
        self._target = target
        self._lock = threading.Lock()
        self._newer = threading.Event()  # a newer snapshot waits, so the current one need not be tried again
        self._waiting: _Snapshot | None = None
        self._running: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "dem_hub-push")

    def submit(self, folder: Path) -> None:
        """Push a folder as it is now, after the push in progress. It replaces a snapshot that still waits."""
        self._missed = None
        try:
            snapshot = _snapshot(folder)
        except OSError as error:
            logger.warning(
                "The push to '%s' failed: no snapshot of '%s' could be made: %s", self._target, folder, _summary(error)
            )
            self._missed = error
            return
        with self._lock:
            older = self._waiting
            self._waiting = snapshot
            self._newer.set()
            if self._running is None:
                self._running = self._thread.submit(self._run)
        if older is not None:
            older.partial.remove()

    def finish(self) -> Exception | None:
        """Wait for all pushes.

        Returns:
            `Exception` or `None`: Why the newest vector is not on the Hub; `None` if it is.
        """
        running = self._running
        if running is not None:
            logger.info("Waiting for the push to '%s' ...", self._target)
            running.result()
        return self._missed or self.failure

    def _run(self) -> None:
        """Push what waits until nothing waits; runs in the thread."""
        while True:
            with self._lock:
                snapshot = self._waiting
                self._waiting = None
                self._newer.clear()
                if snapshot is None:
                    self._running = None
                    return
            try:
                self.failure = self._push_with_patience(snapshot.folder)
            finally:
                snapshot.partial.remove()

    def _push_with_patience(self, snapshot: Path) -> Exception | None:
        """Push, and try again after each delay while it may help. Return the last error, or `None` after a success."""
        for delay in (*DELAYS, None):
            try:
                self._push(snapshot)
            except Exception as error:  # noqa: BLE001  no error may end a training run
                if delay is None or not _may_pass(error):
                    logger.warning("The push to '%s' failed: %s. Not trying again.", self._target, _summary(error))
                    return error
                logger.warning(
                    "The push to '%s' failed: %s. Trying again in %g s.", self._target, _summary(error), delay
                )
                if self._newer.wait(delay):
                    return error
            else:
                logger.info("Pushed to '%s'.", self._target)
                return None
        raise AssertionError  # the last attempt returns


def _may_pass(error: Exception) -> bool:
    """Check whether another attempt may succeed."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return is_transient(status)
    # A `HubError` is a failure of the connection or of the Hub. All other errors of dem_hub, and wrong arguments,
    # would come again. What is left may pass, such as an `OSError` of the network.
    return isinstance(error, HubError) or not isinstance(error, DemHubError | ValueError | TypeError)


def _summary(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


@dataclass(frozen=True)
class _Snapshot:
    """A folder with the files of a vector, in a partial folder beside the vector's.

    If the process is killed, the partial folder is deleted when the next vector is written.
    """

    partial: Partial
    folder: Path


def _snapshot(folder: Path) -> _Snapshot:
    """Return a folder with the same files, as hard links.

    A newer vector replaces files and never writes into them, so links are safe.
    """
    place = folder.resolve()
    with locked(place):
        partial = Partial(place)
        try:
            shutil.copytree(place, partial.folder / folder.name, copy_function=_link)
        except OSError:  # a full disk
            partial.remove()
            raise
    return _Snapshot(partial, partial.folder / folder.name)


def _link(source: str, target: str) -> None:
    place_file(Path(source), Path(target), link=True)
