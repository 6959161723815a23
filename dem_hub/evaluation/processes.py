"""The processes of `accelerate launch`: each has a share of the windows, and sums are added over all of them.

Processes exchange nothing but these sums, and each takes its decisions from them, so all processes take the same ones.
"""

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

_Item = TypeVar("_Item")


def join() -> None:
    """Join the process group that a launcher has prepared, if there is one and this process has not joined it yet."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _is_joined():
        from accelerate import PartialState

        PartialState()


def rank() -> int:
    """Return the number of this process; 0 without a process group."""
    return torch.distributed.get_rank() if _is_joined() else 0


def world_size() -> int:
    """Return the number of processes; 1 without a process group."""
    return torch.distributed.get_world_size() if _is_joined() else 1


def mine(items: Sequence[_Item]) -> Sequence[_Item]:
    """Return the share of this process: every n-th item of n processes."""
    return items[rank() :: world_size()]


def total(values: Tensor, device: torch.device) -> Tensor:
    """Return the sum of `values` over all processes, on the device of `values`.

    `device` is the device of this process's model. NCCL adds only what is on a GPU; other backends add on the CPU.
    """
    if not _is_joined():
        return values
    shared = values.to(device) if torch.distributed.get_backend() == "nccl" else values.clone()
    torch.distributed.all_reduce(shared)
    return shared.to(values.device)


def _is_joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
