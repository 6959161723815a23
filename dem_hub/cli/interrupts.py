"""Ctrl-C during imports, which waits for their end.

A command imports torch, for a second and more. On the way torch's C++ code asks Python for things, and drops whatever
error comes, that of Ctrl-C too: of 40 imports that were interrupted, 21 went on (by hand). At other places it aborts
the process. So the error is raised when nothing is being imported any more. A second Ctrl-C does not wait.
"""

import _thread
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType

# Seconds between two looks at the main thread.
_POLL = 0.02

# The beginning of the file names of the code that imports modules.
_IMPORT_SYSTEM = "<frozen importlib"


def let_interrupts_wait_for_imports() -> None:
    """Let Ctrl-C wait for the end of imports, in this process, whose main thread calls this.

    A process that ignores Ctrl-C, as in the background of some shells, still does.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _Interrupts())


class _Interrupts:
    """The handler of Ctrl-C. The system calls it in the main thread."""

    def __init__(self) -> None:
        self._is_waiting = False
        self._is_repeated = False  # by this object, not by the user
        self._answered = threading.Event()

    def __call__(self, _number: int, frame: FrameType | None) -> None:
        """Raise `KeyboardInterrupt`, now or after the import."""
        if self._is_repeated:
            self._is_repeated = False
            self._answered.set()
            if _is_importing(frame) or not self._is_waiting:
                return
        elif _is_importing(frame) and not self._is_waiting:
            self._wait()
            return
        self._is_waiting = False
        raise KeyboardInterrupt

    def _wait(self) -> None:
        # Not through sys.stderr, in whose code the main thread may be. It may be closed.
        with suppress(OSError):
            os.write(2, b"\nStopping after an import. Ctrl-C again does not wait.\n")
        self._is_waiting = True
        threading.Thread(target=self._repeat, daemon=True).start()

    def _repeat(self) -> None:
        """Send Ctrl-C again whenever the main thread imports nothing, until its error is raised."""
        main_thread = threading.main_thread().ident
        assert main_thread is not None  # it runs
        while self._is_waiting:
            if not _is_importing(sys._current_frames().get(main_thread)):
                self._answered.clear()
                self._is_repeated = True
                _interrupt(main_thread)
                self._answered.wait()
            time.sleep(_POLL)


def _interrupt(main_thread: int) -> None:
    if hasattr(signal, "pthread_kill"):
        # A signal also ends a wait of the thread, for a lock for instance.
        signal.pthread_kill(main_thread, signal.SIGINT)
    else:
        _thread.interrupt_main()


def _is_importing(frame: FrameType | None) -> bool:
    """Check whether code at this place, or one of its callers, is part of an import."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(_IMPORT_SYSTEM):
            return True
        frame = frame.f_back
    return False
