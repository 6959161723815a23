"""The merge as transformers' loader reads it: a state dict whose tensors are computed when the loader asks for them.

transformers' loader treats each value of a state dict as a slice of a safetensors file: it asks for the shape and the
dtype, indexes it with the part that it needs, and calls `.to(device, dtype)`. The merge happens in that last call, on
the device and in the dtype that the loader has chosen.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dem_hub.merging.merge import Merge
from dem_hub.numerics.devices import cpu_by_default
from dem_hub.numerics.passes import expect_work
from dem_hub.numerics.slices import Index, full_index, normalize_index


@dataclass(frozen=True)
class MergedTensor:
    """One merged tensor that nothing has been read of yet, with the methods of a slice of a safetensors file.

    `read` collects the names of the tensors that were computed.
    """

    merge: Merge
    name: str
    read: set[str]

    def get_shape(self) -> list[int]:
        """Return the merged shape."""
        return list(self.merge.shape(self.name))

    def get_dtype(self) -> str:
        """Return the base's dtype, as safetensors writes it (`"BF16"`)."""
        return self.merge.base[self.name].dtype

    def __getitem__(self, index: Any) -> "MergedSlice":
        return MergedSlice(self.merge, self.name, normalize_index(index, self.merge.shape(self.name)), self.read)


@dataclass(frozen=True)
class MergedSlice:
    """A slice of a merged tensor, which is computed by [`MergedSlice.to`]."""

    merge: Merge
    name: str
    index: Index
    read: set[str]

    def to(self, device: torch.device | str | int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Merge the slice on a device (by default the CPU), rounded once to a dtype (by default the base's own)."""
        if device is None:
            device = "cpu"
        self.read.add(self.name)
        # safetensors reads to the default device, which may be any at a caller's.
        with cpu_by_default():
            return self.merge.tensor(self.name, self.index, torch.device(device), dtype)


def lazy_state_dict(merge: Merge, read: set[str] | None = None) -> dict[str, MergedTensor]:
    """Return the merged model as a state dict, by the names in the base's checkpoint.

    Args:
        merge ([`Merge`]): The merge.
        read (`set[str]`, *optional*): Gets the name of each tensor that the loader computes.
    """
    # If the loader merges on the CPU, the compiled passes are loaded for its first tensor, or not at all.
    expect_work(merge.changed_elements())
    names: set[str] = set() if read is None else read
    return {name: MergedTensor(merge, name, names) for name in merge.base}


def merged_tensor(merge: Merge, name: str, dtype: torch.dtype | None = None) -> Tensor:
    """Return one merged tensor, whole, on the CPU."""
    return merge.tensor(name, full_index(merge.shape(name)), torch.device("cpu"), dtype)
