"""Pushing in the background: one thread, one push at a time, and of several vectors that wait only the newest.

What is pushed is a snapshot (hard links, where the file system has them), so that the folder may change meanwhile. Whatever goes wrong
is logged at once and tried again; nothing is raised into the training run.
"""

import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from dem_hub.errors import DemHubError, HubError
from dem_hub.hub.failures import is_transient

logger = logging.getLogger(__name__)

DELAYS = (2.0, 10.0, 60.0)  # seconds before each further attempt, beyond what the Hub's client does itself


class Uploader:
    """Pushes snapshots of a folder, one after the other.

    Args:
        push (`Callable[[Path], Any]`): pushes one folder, and raises where it cannot.
        target (`str`): what messages call where it goes.
    """

    def __init__(self, push: Callable[[Path], Any], target: str) -> None:
        self.failure: Exception | None = None  # of the newest that was pushed; `None` once it is there
        self._missed: Exception | None = None  # why there is no snapshot of a newer one
        self._push, self._target = push, target
        self._lock, self._newer = threading.Lock(), threading.Event()
        self._waiting: Path | None = None
        self._running: Future[None] | None = None
        self._thread = ThreadPoolExecutor(1, "dem_hub-push")

    def submit(self, folder: Path) -> None:
        """Push a folder as it is now, after the push in progress; one that still waits gives way."""
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
            older, self._waiting = self._waiting, snapshot
            self._newer.set()
            if self._running is None:
                self._running = self._thread.submit(self._run)
        if older is not None:
            shutil.rmtree(older.parent, ignore_errors=True)

    def finish(self) -> Exception | None:
        """Wait for all that was submitted; returns why the newest is not there, `None` where it is."""
        running = self._running
        if running is not None:
            logger.info("Waiting for the push to '%s' ...", self._target)
            running.result()
        return self._missed or self.failure

    def _run(self) -> None:
        while True:
            with self._lock:
                snapshot, self._waiting = self._waiting, None
                self._newer.clear()
                if snapshot is None:
                    self._running = None
                    return
            try:
                self.failure = self._push_with_patience(snapshot)
            finally:
                shutil.rmtree(snapshot.parent, ignore_errors=True)

    def _push_with_patience(self, snapshot: Path) -> Exception | None:
        for delay in (*DELAYS, None):
            try:
                self._push(snapshot)
            except Exception as error:  # noqa: BLE001  whatever it is, it must not end a training run
                again = delay is not None and _is_passing(error)
                then = f"Trying again in {delay:g} s." if again else "Not trying again."
                logger.warning("The push to '%s' failed: %s. %s", self._target, _summary(error), then)
                if not again or self._newer.wait(delay):
                    return error
            else:
                logger.info("Pushed to '%s'.", self._target)
                return None
        raise AssertionError  # the last attempt returns


def _is_passing(error: Exception) -> bool:
    """Whether it may go better in a moment."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return is_transient(status)
    return isinstance(error, HubError) or not isinstance(error, DemHubError | ValueError | TypeError)


def _summary(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]


def _snapshot(folder: Path) -> Path:
    """The folder's files under another name, which stay what they are: files are replaced there, and never written into."""
    place = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".push", dir=folder.parent))
    try:
        shutil.copytree(folder, place / folder.name, copy_function=_link)
    except OSError:  # a disk that is full
        shutil.rmtree(place, ignore_errors=True)
        raise
    return place / folder.name


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        shutil.copyfile(source, target)
