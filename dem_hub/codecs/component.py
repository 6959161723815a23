"""One tensor's delta as it lies in a file: a codec, its parts unread, a scale; sometimes two of them (a LoRA on a saved module)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from dem_hub.checkpoints.lazy import LazyTensor, OnDevice
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.replace import Replace
from dem_hub.numerics.slices import Index

if TYPE_CHECKING:
    from dem_hub.codecs.codec import Codec

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Component:
    """The parts that a codec made of a tensor of this shape, and the scale of the decoded delta (a LoRA's alpha / rank)."""

    codec: "Codec"
    parts: Mapping[str, LazyTensor]
    shape: tuple[int, ...]
    scale: float = 1.0

    def decode(self, base: LazyTensor, index: Index, device: torch.device = CPU) -> Delta:
        """The slice `index` of the delta, decoded on a device; `base` is the base's tensor, whole and unread."""
        parts = {name: OnDevice(part, device) for name, part in self.parts.items()}
        return self.codec.decode(parts, self.shape, index, OnDevice(base, device))


@dataclass(frozen=True)
class StoredDelta:
    """The delta of one tensor, unread. `rows` are the rows that the base lacks, whole and in the fine-tune's dtype."""

    components: tuple[Component, ...] = ()
    rows: LazyTensor | None = field(default=None)

    def decode(self, base: LazyTensor, index: Index, device: torch.device = CPU) -> list[tuple[float, Delta]]:
        """The slice `index` of the delta, as scaled summands; `base` is the base's tensor, whole and unread."""
        return [(part.scale, part.decode(base, index, device)) for part in self.components]

    @property
    def is_factored(self) -> bool:
        """Whether it decodes to factors alone."""
        return all(isinstance(part.codec, LowRank) for part in self.components)

    @property
    def replacement(self) -> LazyTensor | None:
        """The tensor that replaces the base's, where this is no delta to be scaled."""
        for part in self.components:
            if isinstance(part.codec, Replace):
                return part.parts["replace"]
        return None
