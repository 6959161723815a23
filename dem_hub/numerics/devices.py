"""The default device of torch, which is the caller's, and may be any."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """Make torch's default device the CPU in this context: safetensors reads to the default device.

    torch asks a device context about each operation, in Python. Three LoRAs on 512 x 576 weights took 2.6 ms to merge
    in such a context and 1.9 without, so there is none where the default is the CPU anyway.
    """
    if torch.get_default_device().type == "cpu":
        yield
        return
    with torch.device("cpu"):
        yield
