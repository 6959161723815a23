"""Processes that are killed at a chosen change of a file."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

# Python's audit events of a change of names. What is written into a file under a partial name is no change of those.
CHANGES = frozenset({"os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir"})

KILLED = -signal.SIGKILL


def fork(action: Callable[[], object]) -> int:
    """Run something in a process of its own, which ends with 1 if it raises; return the process's number."""
    child = os.fork()
    if child == 0:
        # torch makes its pool of threads anew in a forked process. Two threads that do so at once can find none.
        torch.set_num_threads(torch.get_num_threads())
        status = 1
        try:
            action()
            status = 0
        except BaseException:  # noqa: BLE001  shown, and told by the status
            traceback.print_exc()
        finally:
            os._exit(status)
    return child


def status_of(child: int) -> int:
    """Wait for a process; return its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_and_die(action: Callable[[], object], count: int) -> int:
    """Run something in a process of its own, which is killed at its `count`-th change of a name; return its status."""

    def run() -> None:
        seen = 0

        def hook(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event in CHANGES:
                seen += 1
                if seen == count:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        action()

    return status_of(fork(run))
