"""The tensors of a model in training, each of them whole on the main process, whatever holds them: one process, DDP, FSDP2 or ZeRO-3.

A sharded tensor is put together by all processes at once. The main process leads: it names the tensor that it wants, and the others
follow until it is done. So one tensor is whole at a time, where a state dict would have all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dem_hub.errors import CheckpointError


class Gathering:
    """A model's parameters and buffers, by their names in memory, without what wraps the model. Made anew for each time of reading."""

    def __init__(self, model: torch.nn.Module) -> None:
        """Unwrap the model.

        Raises:
            `CheckpointError`: weights that no process has in a form that can be read.
        """
        from accelerate.utils import extract_model_from_parallel

        _refuse_unreadable(model)
        self.model: Any = extract_model_from_parallel(model, keep_torch_compile=False)
        _reshard(self.model)
        self.tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in _named_tensors(self.model)}
        self.is_sharded = any(_is_shard(tensor) for tensor in self.tensors.values())

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Within the block, the main process reads, and the others [`follow`]."""
        try:
            yield
        finally:
            if self.is_sharded:
                share(None)

    def follow(self) -> None:
        """Take part in what the main process reads, until it is done."""
        while self.is_sharded and (name := share(None)) is not None:
            _whole(self.tensors[name])

    def read(self, name: str) -> Tensor:
        """One tensor, whole, detached, and not to be written into; on the main process, within `leading`."""
        tensor = self.tensors[name]
        if _is_shard(tensor):
            share(name)
        return _whole(tensor).detach()


def share(value: Any) -> Any:
    """What the main process has, on every process."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    holder = [value]
    distributed.broadcast_object_list(holder, src=0)
    return holder[0]


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """The shape of the whole tensor."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def _named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and what is saved of the buffers, under every name that they have."""
    yield from model.named_parameters(remove_duplicate=False)
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def _is_shard(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor") or hasattr(tensor, "ds_id")


def _whole(tensor: Any) -> Tensor:
    """The whole of it; collective where it is sharded."""
    if hasattr(tensor, "full_tensor"):  # DTensor: FSDP2 and tensor parallelism
        return tensor.detach().full_tensor()  # type: ignore[no-any-return]
    if hasattr(tensor, "ds_id"):  # ZeRO-3
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):  # an attribute, and no module to import from
            return tensor.detach().clone()  # type: ignore[no-any-return]
    return tensor  # type: ignore[no-any-return]


def _reshard(model: torch.nn.Module) -> None:
    """Leave the copy that FSDP2 made for the last forward pass, in its lower precision."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _refuse_unreadable(model: torch.nn.Module) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise CheckpointError(
            "The model is sharded by FSDP1, which flattens many weights into one and is no longer kept up. Train with FSDP2 "
            "(fsdp_config={'version': 2}), or without the callback, and extract from the saved checkpoint."
        )
    away = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if away:
        raise CheckpointError(
            f"{len(away)} weights are offloaded ('{away[0]}' is on the device 'meta'). Train a model that is whole in memory, or sharded "
            "by FSDP2 or ZeRO-3."
        )
