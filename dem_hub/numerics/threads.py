"""Run tasks on all cores, one single-threaded task for each core.

torch splits every operation across its threads, and waits for all of them after each. A merge consists of many short
operations, for which that costs more than it gains: up to a hundred times more on a busy machine.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from contextvars import Context
from pathlib import Path
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

# Items beyond one for each thread: one that is finished and waits to be taken, and one that a free thread finds at
# once.
_SPARE = 2

# Linux's list of this process's threads.
_THREADS = Path("/proc/self/task")


@contextmanager
def one_core() -> Iterator[None]:
    """Keep the operations of torch that this thread starts in this thread."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    # On a CPU, vLLM replaces `torch.set_num_threads` by a function that warns and sets nothing, as it has bound torch's
    # threads to cores. Here no thread is made or ended, and the number is the old one afterwards.
    torch._C.set_num_threads(1)
    try:
        yield
    finally:
        torch._C.set_num_threads(threads)


def most_held() -> int:
    """Return how many items [`in_order`] works on or holds at a time, at most."""
    return torch.get_num_threads() + _SPARE


def in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int | None = None
) -> Iterator[_Result]:
    """Yield the results of a function in the order of the items, computed on several threads.

    At most two more results than there are threads are held at a time.

    Args:
        function (`Callable`): The function.
        items (`Iterable`): What it is called with.
        threads (`int`, *optional*): How many threads; by default as many as torch would use in the calling one.

    Example:

    ```python
    >>> from dem_hub.numerics.threads import in_order
    >>> list(in_order(lambda number: number**2, range(5)))
    [0, 1, 4, 9, 16]

    ```
    """
    if threads is None:
        threads = torch.get_num_threads()

    def work(item: _Item) -> _Result:
        with one_core():
            return function(item)

    if threads == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads, initializer=_run_on, initargs=(_cores(),)) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= threads + _SPARE:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _cores() -> set[int]:
    """Return the cores that any thread of this process may run on; none where the system does not say."""
    if not _THREADS.is_dir():
        return set()
    cores: set[int] = set()
    for thread in _THREADS.iterdir():
        with suppress(ProcessLookupError):  # it has ended
            cores |= os.sched_getaffinity(int(thread.name))
    return cores


def _run_on(cores: set[int]) -> None:
    """Let this thread run on these cores.

    A thread begins with the cores of the one that starts it. That can be a single one: a program that binds each of
    torch's threads to a core, as vLLM does on a CPU, binds its main thread too.
    """
    if cores:
        with suppress(OSError):  # the system has taken cores away meanwhile
            os.sched_setaffinity(0, cores)


def take_context(context: Context) -> None:
    """Give this thread the context variables of another: a thread of a pool begins with none of its caller's.

    Args:
        context (`Context`): What `contextvars.copy_context()` returned in the other thread.
    """
    for variable, value in context.items():
        variable.set(value)
