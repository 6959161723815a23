"""The merge as transformers' loader reads it: a lazy state dict."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dem_hub.merging.merge import Merge
from dem_hub.numerics.slices import Index, full_index, normalize_index


@dataclass(frozen=True)
class MergedTensor:
    """One merged tensor, as a loader of safetensors slices sees it: nothing is read before it is indexed and moved."""

    merge: Merge
    name: str

    def get_shape(self) -> list[int]:
        """The merged shape."""
        return list(self.merge.shape(self.name))

    def get_dtype(self) -> str:
        """The base's dtype, as safetensors writes it."""
        return self.merge.base[self.name].dtype

    def __getitem__(self, index: Any) -> "MergedSlice":
        return MergedSlice(self.merge, self.name, normalize_index(index, self.merge.shape(self.name)))


@dataclass(frozen=True)
class MergedSlice:
    """A slice of a merged tensor, made where and as what it is asked for."""

    merge: Merge
    name: str
    index: Index

    def to(self, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Merge it on this device (the CPU by default), rounded once to this dtype (the base's own by default)."""
        return self.merge.tensor(self.name, self.index, torch.device("cpu" if device is None else device), dtype)


def lazy_state_dict(merge: Merge) -> dict[str, MergedTensor]:
    """The merged model as a state dict whose tensors are made when a loader asks for them."""
    return {name: MergedTensor(merge, name) for name in merge.base}


def merged_tensor(merge: Merge, name: str, dtype: torch.dtype | None = None) -> Tensor:
    """One merged tensor, whole, on the CPU."""
    return merge.tensor(name, full_index(merge.shape(name)), torch.device("cpu"), dtype)
