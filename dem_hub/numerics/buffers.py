"""Buffers for intermediate results, which each thread reuses from block to block.

On the CPU, the system hands out large memory page by page, on first touch. Threads that touch new pages wait for one
another, which can cost more than the arithmetic: with new memory for each block, two threads ran no faster than one.
So each thread keeps what its blocks need. A function whose result is such memory returns a `Buffer`: the result is
overwritten by the next call with the same use. New memory for results is asked for in larger pages.
"""

import ctypes
import math
import mmap
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

# A tensor that is valid until the same thread asks for the same use and dtype again.
Buffer = Tensor

# Elements of the largest buffer that is kept, 32 MiB in float64. What is larger is allocated, and freed. Chosen by
# hand, not measured.
MAX_KEPT = 1 << 22

# Bytes from which new memory is asked for in huge pages, of 2 MiB on most processors: a few of them lie in it whole.
# Chosen by hand, not measured.
_LARGE = 1 << 23


class _Kept(threading.local):
    """One thread's buffers: by use and dtype, and one after the other."""

    def __init__(self) -> None:
        self.memory: dict[tuple[str, torch.dtype], Tensor] = {}
        self.in_turn: list[Tensor] = []
        self.taken = 0  # of those in turn
        self.is_reusing = False


_kept = _Kept()


def scratch(use: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Buffer:
    """Return a buffer of this shape whose contents are undefined.

    On an accelerator it is ordinary memory, because the allocator there keeps memory by itself.

    Args:
        use (`str`): what the buffer is for. Every call from one thread with the same use and dtype gets the same
            memory, so two results that are needed at the same time have different uses.
        shape (`tuple[int, ...]`): the shape.
        dtype (`torch.dtype`): the dtype.
        device (`torch.device`): the device.

    Example:

    ```python
    >>> import torch
    >>> from dem_hub.numerics.buffers import scratch
    >>> first = scratch("sum", (2, 3), torch.float32, torch.device("cpu"))
    >>> scratch("sum", (3, 1), torch.float32, torch.device("cpu")).data_ptr() == first.data_ptr()
    True

    ```
    """
    count = math.prod(shape)
    if device.type != "cpu" or count > MAX_KEPT:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = _kept.memory.get((use, dtype))
    if memory is None or len(memory) < count:
        memory = _kept_memory(count, dtype)
        _kept.memory[use, dtype] = memory
    return memory[:count].view(shape)


@contextmanager
def reusing_memory() -> Iterator[None]:
    """Let [`decoded_memory`] return to this thread what it had in earlier blocks.

    What it returns within the block is overwritten after it. Blocks can be nested: a recipe's base is merged within the
    merge of the recipe.
    """
    before, was_reusing = _kept.taken, _kept.is_reusing
    _kept.is_reusing = True
    try:
        yield
    finally:
        _kept.taken, _kept.is_reusing = before, was_reusing


def decoded_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return memory whose contents are undefined, valid to the end of [`reusing_memory`], or for good outside of it.

    Args:
        shape (`tuple[int, ...]`): the shape.
        dtype (`torch.dtype`): the dtype.
        device (`torch.device`): the device.
    """
    count = math.prod(shape)
    if device.type != "cpu" or count > MAX_KEPT or not _kept.is_reusing:
        return torch.empty(shape, dtype=dtype, device=device)
    place = _kept.taken
    _kept.taken += 1
    if place == len(_kept.in_turn):
        _kept.in_turn.append(_kept_memory(0, torch.uint8))
    nbytes = count * dtype.itemsize
    if len(_kept.in_turn[place]) < nbytes:
        _kept.in_turn[place] = _kept_memory(nbytes, torch.uint8)
    return _kept.in_turn[place][:nbytes].view(dtype).view(shape)


def _kept_memory(count: int, dtype: torch.dtype) -> Tensor:
    # Memory that is made in inference mode could not be written to outside of it.
    with torch.inference_mode(mode=False):
        return torch.empty(count, dtype=dtype, device="cpu")


def new_memory(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return new memory for a result, whose contents are undefined.

    Large memory on the CPU comes in huge pages where the system has them to give: the system prepares each page when it
    is first touched, and of these there are fewer.

    Args:
        shape (`tuple[int, ...]`): the shape.
        dtype (`torch.dtype`): the dtype.
        device (`torch.device`): the device.
    """
    memory = torch.empty(shape, dtype=dtype, device=device)
    ask = _madvise()
    # A subclass, such as a fake tensor of torch.compile, may have no memory.
    if ask is not None and type(memory) is Tensor and memory.device.type == "cpu" and memory.nbytes >= _LARGE:
        start = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        stop = (memory.data_ptr() + memory.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
        # The system may refuse, and then gives ordinary pages.
        ask(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), mmap.MADV_HUGEPAGE)
    return memory


@cache
def _madvise() -> Callable[..., Any] | None:
    """Return the system's function, or `None` where there are no huge pages to ask for."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    return ctypes.CDLL(None).madvise
