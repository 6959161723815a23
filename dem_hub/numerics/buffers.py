"""Buffers for intermediate results, which each thread reuses from block to block.

On the CPU, the system hands out large memory page by page, on first touch. Threads that touch new pages wait for one
another, which can cost more than the arithmetic: with new memory for each block, two threads ran no faster than one.
So each thread keeps what its blocks need. A function whose result is such memory returns a `Buffer`: the result is
overwritten by the next call with the same use.
"""

import math
import threading

import torch
from torch import Tensor

# A tensor that is valid until the same thread asks for the same use and dtype again.
Buffer = Tensor

# Elements of the largest buffer that is kept, 32 MiB in float64. What is larger is allocated, and freed. Chosen by
# hand, not measured.
MAX_KEPT = 1 << 22


class _Kept(threading.local):
    """One thread's buffers, by use and dtype."""

    def __init__(self) -> None:
        self.memory: dict[tuple[str, torch.dtype], Tensor] = {}


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
        # Memory that is made in inference mode could not be written to outside of it.
        with torch.inference_mode(mode=False):
            memory = torch.empty(count, dtype=dtype, device=device)
        _kept.memory[use, dtype] = memory
    return memory[:count].view(shape)
