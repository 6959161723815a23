"""The memory that operations of torch take."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that operations make on a device, as long as they live, and the most of them."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device
        self.live = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and leaf.device.type == self.device:
                self._count(leaf.untyped_storage(), given)
        return result

    def _count(self, storage: Any, given: set[int]) -> None:
        identity, nbytes = storage._cdata, storage.nbytes()
        if identity in self.known | given:
            return
        self.known.add(identity)
        self.live += nbytes
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._forget, identity, nbytes)

    def _forget(self, identity: int, nbytes: int) -> None:
        self.known.discard(identity)
        self.live -= nbytes
