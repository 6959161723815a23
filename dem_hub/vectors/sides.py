"""The two sides of an extraction: the base's tensors and the fine-tune's, read in pairs and compared on one device."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.reader import TensorSource
from dem_hub.errors import CheckpointError
from dem_hub.numerics.norms import is_finite
from dem_hub.numerics.slices import full_index
from dem_hub.vectors.matching import Pair

_LARGEST = torch.finfo(torch.float32).max


@dataclass(frozen=True)
class Sides:
    """The two checkpoints, and the device on which their tensors are compared."""

    base: Base
    finetuned: TensorSource
    device: torch.device

    def is_replaced(self, key: str) -> bool:
        """Return whether a tensor is no delta that can be scaled: a buffer, or whole numbers."""
        if not self.base.checkpoint[key].torch_dtype.is_floating_point:
            return True
        architecture = self.base.architecture
        return architecture is not None and key in architecture.buffers

    def shape(self, pair: Pair) -> tuple[int, ...]:
        """Return the shape of the base's tensor."""
        return self.base.checkpoint[pair.base_key].shape

    def read(self, pair: Pair, step: int = 1) -> tuple[Tensor, Tensor]:
        """Return the base's tensor, and the fine-tune's without its new rows; only every `step`th row of both."""
        old = self.base.checkpoint.read(pair.base_key)
        new = self.finetuned.read(pair.finetuned_key, full_index(self.shape(pair)))
        if old.ndim:
            old = old[::step]
            new = new[::step]
        return old.to(self.device), new.to(self.device)

    def check_finite(self, pair: Pair, old: Tensor, new: Tensor) -> None:
        """Refuse a base or a fine-tune that diverged."""
        _check_finite(old, self.base.checkpoint.path, pair.base_key)
        _check_finite(new, self.finetuned.path, pair.finetuned_key)

    def read_new_rows(self, pair: Pair) -> Tensor | None:
        """Return the rows that the base lacks, or `None` if there are none."""
        if not pair.rows:
            return None
        rows, *others = self.shape(pair)
        new_rows = self.finetuned.read(pair.finetuned_key, (slice(rows, None), *full_index(others)))
        _check_finite(new_rows, self.finetuned.path, pair.finetuned_key)
        return new_rows


def subtract(finetuned: Tensor, base: Tensor) -> Tensor:
    """Return finetuned - base in float32, without a copy of the base."""
    delta = finetuned.to(torch.float32, copy=True).sub_(base)
    # The difference of two extreme values of bfloat16 overflows.
    return delta.clamp_(-_LARGEST, _LARGEST)


def _check_finite(tensor: Tensor, path: Path, key: str) -> None:
    if not is_finite(tensor):
        raise CheckpointError(
            f"'{key}' of '{path}' has NaN or inf in it. A model that diverged has no vector; use an earlier checkpoint."
        )
