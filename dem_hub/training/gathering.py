"""Read the tensors of a model in training, each whole on the main process: one process, DDP, FSDP2 or ZeRO-3.

A sharded tensor can only be gathered by all processes together. The main process leads: it broadcasts the name of
the tensor that it wants, and the other processes follow until it is done. One tensor is whole at a time, whereas a
full state dict would hold all of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dem_hub.errors import CheckpointError


class Gathering:
    """The parameters and saved buffers of a model, by their names in memory without those of wrappers.

    Make a new one each time the model is read: the Trainer may have wrapped the model again.

    Attributes:
        model (`PreTrainedModel` or `PeftModel`): The model without DDP, FSDP or DeepSpeed around it.
        tensors (`dict[str, torch.Tensor]`): The tensors, or this process's shards of them.
        is_sharded (`bool`): Whether tensors have to be gathered.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        """Unwrap the model.

        Raises:
            `CheckpointError`: If no process has the weights in a form that can be read.
        """
        from accelerate.utils import extract_model_from_parallel

        _refuse_unreadable(model)
        self.model: Any = extract_model_from_parallel(model, keep_torch_compile=False)
        _reshard(self.model)
        self.tensors = {name.replace("_orig_mod.", ""): tensor for name, tensor in _named_tensors(self.model)}
        self.is_sharded = any(_is_shard(tensor) for tensor in self.tensors.values())

    @property
    def core(self) -> Any:
        """The transformers model inside a PEFT model, or the model itself."""
        # transformers' own adapter methods put no model around it.
        if hasattr(self.model, "get_base_model"):
            return self.model.get_base_model()
        return self.model

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Enclose what the main process reads. The other processes call [`Gathering.follow`] meanwhile."""
        try:
            yield
        finally:
            if self.is_sharded:
                share(None)

    def follow(self) -> None:
        """Take part in gathering, until the main process has read everything it wants."""
        while self.is_sharded and (name := share(None)) is not None:
            _whole(self.tensors[name])

    def read(self, name: str) -> Tensor:
        """Return a tensor, whole and detached.

        Call it on the main process, within `leading`, and do not write into the result.
        """
        tensor = self.tensors[name]
        if _is_shard(tensor):
            share(name)
        return _whole(tensor).detach()


def share(value: Any) -> Any:
    """Return the main process's value on every process."""
    from torch import distributed

    if not (distributed.is_available() and distributed.is_initialized()):
        return value
    holder = [value]
    distributed.broadcast_object_list(holder, src=0)
    return holder[0]


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape of the whole tensor."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))  # a ZeRO-3 shard is empty, and has its shape aside


def _named_tensors(model: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and the buffers that are saved, under every name that they have."""
    yield from model.named_parameters(remove_duplicate=False)
    for prefix, module in model.named_modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield f"{prefix}.{name}" if prefix else name, buffer


def _is_shard(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor") or hasattr(tensor, "ds_id")


def _whole(tensor: Any) -> Tensor:
    """Return the whole tensor. If it is sharded, all processes must call this together."""
    if hasattr(tensor, "full_tensor"):  # DTensor: FSDP2 and tensor parallelism
        return tensor.detach().full_tensor()  # type: ignore[no-any-return]
    if hasattr(tensor, "ds_id"):  # ZeRO-3
        import deepspeed

        # `deepspeed.zero` is an attribute of the package and no module, so nothing can be imported from it.
        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()  # type: ignore[no-any-return]
    return tensor  # type: ignore[no-any-return]


def _reshard(model: torch.nn.Module) -> None:
    """Drop the gathered copy of the weights that FSDP2 keeps from the last forward pass: it has a lower precision
    than the shards.
    """
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _refuse_unreadable(model: torch.nn.Module) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    if any(isinstance(module, FullyShardedDataParallel) for module in model.modules()):
        raise CheckpointError(
            "The model is sharded by FSDP1, which flattens many weights into one and is no longer kept up. Train "
            "with FSDP2 "
            "(fsdp_config={'version': 2}), or without the callback, and extract from the saved checkpoint."
        )
    offloaded = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if offloaded:
        raise CheckpointError(
            f"{len(offloaded)} weights are offloaded ('{offloaded[0]}' is on the device 'meta'). Train a model "
            "that is whole in memory, or sharded "
            "by FSDP2 or ZeRO-3."
        )
