"""Memory for what lies between two steps of one block, the same again for the next.

On the CPU the system hands out large memory page by page, on first touch, and threads that touch new pages wait for one another, longer
than they compute. So each thread keeps what its blocks need.
"""

import math
import threading

import torch
from torch import Tensor

MOST = 1 << 22  # elements kept of one kind; what is larger is allocated, and freed


class _Kept(threading.local):
    """One thread's memory, by use and dtype."""

    def __init__(self) -> None:
        self.memory: dict[tuple[str, torch.dtype], Tensor] = {}


_kept = _Kept()


def scratch(use: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory of this shape, its contents undefined: the same for every call from one thread with the same use and dtype.

    An accelerator's allocator keeps memory by itself, and is left to it.

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
    if device.type != "cpu" or count > MOST:
        return torch.empty(shape, dtype=dtype, device=device)
    memory = _kept.memory.get((use, dtype))
    if memory is None or len(memory) < count:
        with torch.inference_mode(mode=False):  # else it could not be written to outside of that mode
            memory = torch.empty(count, dtype=dtype, device=device)
        _kept.memory[use, dtype] = memory
    return memory[:count].view(shape)
