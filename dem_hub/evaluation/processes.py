"""The processes of `accelerate launch`, as the search sees them: which windows are mine, and a sum over all of them.

Sums over windows are all that processes exchange, so that every one of them takes the same decisions from the same numbers.
"""

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

_Item = TypeVar("_Item")


def join() -> None:
    """Join the process group that a launcher has prepared, where there is one and nobody has yet."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not _is_joined():
        from accelerate import PartialState

        PartialState()


def rank() -> int:
    """The number of this process, 0 for the only one."""
    return torch.distributed.get_rank() if _is_joined() else 0


def world_size() -> int:
    """How many processes there are."""
    return torch.distributed.get_world_size() if _is_joined() else 1


def mine(items: Sequence[_Item]) -> Sequence[_Item]:
    """This process's share, every n-th."""
    return items[rank() :: world_size()]


def total(values: Tensor, device: torch.device) -> Tensor:
    """The sum over processes, on the CPU; `device` is where the process group can reach it."""
    if not _is_joined():
        return values
    shared = values.to(device) if torch.distributed.get_backend() == "nccl" else values.clone()
    torch.distributed.all_reduce(shared)
    return shared.to(values.device)


def _is_joined() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
