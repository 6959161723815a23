"""Work on all cores: one thread for each, and one core for each thread.

torch's own threads split every operation, and wait for one another at the end of each: of the many short ones that a merge is made of,
that costs more than it brings, and on a busy machine a hundred times more. So each block is one thread's.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@contextmanager
def one_core() -> Iterator[None]:
    """Operations of torch in this thread stay in it."""
    threads = torch.get_num_threads()
    if threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def in_order(function: Callable[[_Item], _Result], items: Iterable[_Item]) -> Iterator[_Result]:
    """Results in the order of the items, worked out on as many threads as torch would use; few are held at a time.

    Example:

    ```python
    >>> from dem_hub.numerics.threads import in_order
    >>> list(in_order(lambda number: number**2, range(5)))
    [0, 1, 4, 9, 16]

    ```
    """
    threads = torch.get_num_threads()

    def work(item: _Item) -> _Result:
        with one_core():
            return function(item)

    if threads == 1:
        yield from map(work, items)
        return
    waiting: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
