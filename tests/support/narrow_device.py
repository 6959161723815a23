"""A device without float64, on a machine that has none: Apple's GPUs, and some of Intel's.

Within `narrow_device()`, torch takes `torch.device("mps")` for a device that is there. A tensor on it is a wrapper of one
on the CPU, which computes. What such a device refuses is refused: float64 in any operand or result of any operation,
operands on two devices, and memory that numpy could read. The modes of torch hold for the thread that enters them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

NARROW = torch.device("mps")
WIDE = (torch.float64, torch.complex128)

# Functions that take indices from the CPU, as all devices do.
_INDEXING = (Tensor.__getitem__, Tensor.__setitem__)


class NarrowTensor(Tensor):
    """A tensor on the device: `inner` has its values, on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "NarrowTensor":
        if inner.dtype in WIDE:
            raise TypeError(f"'{NARROW}' has no {inner.dtype}; a tensor of shape {list(inner.shape)} asks for it.")
        wrapped: NarrowTensor = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype, device=NARROW
        )
        wrapped.inner = inner
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{func} is used outside of `narrow_device()`, or in another thread.")


class _NoWideOperation(TorchDispatchMode):
    """Refuses float64 in all operations, also in those that are parts of others."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, results)):
            if isinstance(leaf, Tensor) and leaf.dtype in WIDE:
                raise TypeError(f"{func} asks '{NARROW}' for {leaf.dtype}.")
        return results


class _OnDevice(TorchFunctionMode):
    """Runs each function of torch on the device that its arguments are on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        narrow = [tensor for tensor in tensors if isinstance(tensor, NarrowTensor)]
        if func is Tensor.to:
            return _move(*args, **kwargs)
        if func is Tensor.cpu:
            return _move(args[0], "cpu")
        if func is Tensor.copy_ and narrow:
            return _copy(*args)
        stays = bool(narrow)
        if kwargs.get("device") is not None:
            stays = _is_narrow(kwargs["device"])
            kwargs["device"] = torch.device("cpu") if stays else kwargs["device"]
        if not stays and not narrow:
            return func(*args, **kwargs)
        if narrow and func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return NARROW
        if narrow and func is Tensor.numpy:
            raise TypeError(f"numpy cannot read the memory of '{NARROW}'.")
        others = [tensor for tensor in tensors if not isinstance(tensor, NarrowTensor) and tensor.ndim]
        if narrow and others and func not in _INDEXING:
            raise RuntimeError(f"{func} has operands on '{NARROW}' and on '{others[0].device}'.")
        wrappers = {id(tensor.inner): tensor for tensor in narrow}
        args, kwargs = tree_map(_inner, (args, kwargs))
        with _NoWideOperation():
            results = func(*args, **kwargs)
        if not stays:
            return results
        return tree_map(lambda leaf: _wrapped(leaf, wrappers), results)


@contextmanager
def narrow_device() -> Iterator[torch.device]:
    """Yield a device that has no float64."""
    with _OnDevice():
        yield NARROW


def _is_narrow(device: Any) -> bool:
    return torch.device(device).type == NARROW.type


def _inner(leaf: Any) -> Any:
    return leaf.inner if isinstance(leaf, NarrowTensor) else leaf


def _wrapped(leaf: Any, wrappers: dict[int, NarrowTensor]) -> Any:
    """Return a result on the device. An operand that was changed in place is its own result."""
    if not isinstance(leaf, Tensor):
        return leaf
    if id(leaf) in wrappers:
        return wrappers[id(leaf)]
    return NarrowTensor(leaf)


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Do what `copy_` does. What crosses to or from the device is cast on the CPU."""
    _inner(target).copy_(_inner(source))
    return target


def _move(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Do what `Tensor.to` does, with any of its arguments."""
    device = kwargs.pop("device", None)
    dtype = kwargs.pop("dtype", None)
    rest = list(args)
    if rest and isinstance(rest[0], Tensor):
        device, dtype = rest[0].device, rest[0].dtype
        rest = []
    if rest and (rest[0] is None or isinstance(rest[0], (str, int, torch.device))):
        device = rest.pop(0)
    if rest and isinstance(rest[0], torch.dtype):
        dtype = rest.pop(0)
    is_there = isinstance(tensor, NarrowTensor)
    goes_there = is_there if device is None else _is_narrow(device)
    values = _inner(tensor)
    if not goes_there:
        if is_there and dtype in WIDE:
            raise TypeError(f"'{NARROW}' has no {dtype}. Copy to the CPU first, and widen there.")
        return values.to("cpu" if is_there else device, dtype, **kwargs)
    if is_there and dtype in (None, values.dtype) and not kwargs.get("copy"):
        return tensor
    return NarrowTensor(values.to("cpu", dtype, **{**kwargs, "copy": True}))
