"""The delta of one tensor as it lies in a file, unread.

A LoRA on a saved module is two deltas of one tensor, so a stored delta is a list of components. Each component is a
codec with its parts and a scale. Parts are moved to the device as they are in the file, and decoded there.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from dem_hub.checkpoints.lazy import LazyTensor, OnDevice
from dem_hub.codecs.codec import Codec
from dem_hub.codecs.delta import Delta
from dem_hub.numerics.slices import Index

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Component:
    """The parts that a codec made of a tensor of this shape, and the scale of the decoded delta (a LoRA's alpha /
    rank).
    """

    codec: Codec
    parts: Mapping[str, LazyTensor]
    shape: tuple[int, ...]
    scale: float = 1.0

    def decode(self, base: LazyTensor, index: Index, device: torch.device = CPU) -> Delta:
        """Return the slice `index` of the delta, without the scale, decoded on a device.

        `base` is the base's whole tensor, unread.
        """
        parts = {name: OnDevice(part, device) for name, part in self.parts.items()}
        return self.codec.decode(parts, self.shape, index, OnDevice(base, device))


@dataclass(frozen=True)
class StoredDelta:
    """The delta of one tensor, unread. `rows` are the rows that the base lacks, whole and in the fine-tune's dtype."""

    components: tuple[Component, ...] = ()
    rows: LazyTensor | None = None

    def decode(self, base: LazyTensor, index: Index, device: torch.device = CPU) -> list[tuple[float, Delta]]:
        """Return the slice `index` of the delta as pairs of a scale and a delta.

        `base` is the base's whole tensor, unread.
        """
        return [(component.scale, component.decode(base, index, device)) for component in self.components]

    @property
    def is_factored(self) -> bool:
        """True if the delta decodes to nothing but factors."""
        return all(component.codec.is_factored for component in self.components)

    @property
    def replacement(self) -> LazyTensor | None:
        """The tensor that takes the place of the base's, if this is no delta that can be scaled."""
        for component in self.components:
            replacement = component.codec.replacement(component.parts)
            if replacement is not None:
                return replacement
        return None
