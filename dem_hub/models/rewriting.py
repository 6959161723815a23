"""Merged tensors written over those of a loaded model, block by block, where [`Places`] has found them."""

from collections.abc import Collection, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dem_hub.errors import CoefficientError
from dem_hub.merging.merge import Merge
from dem_hub.models.places import REMEDY, Places
from dem_hub.numerics.slices import Index, full_index
from dem_hub.numerics.threads import in_order

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class _Job:
    """One block of a tensor on disk, and the model's tensors that it is written over."""

    merge: Merge
    name: str
    block: Index
    targets: tuple[Tensor, ...]

    def write(self) -> None:
        """Merge the block into the first target, and copy it to the others."""
        # A thread is not in its caller's modes. What was made in inference mode is written to in that mode alone.
        is_inference = any(target.is_inference() for target in self.targets)
        with torch.inference_mode(is_inference), torch.no_grad():
            first, *others = (target[self.block] for target in self.targets)
            self.merge.write(self.name, self.block, first)
            for other in others:
                other.copy_(first)


@torch.no_grad()
def write_merged(
    model: "PreTrainedModel",
    places: Places,
    found: Mapping[str, tuple[Tensor, ...]],
    merge: Merge,
    keys: Collection[str],
) -> None:
    """Merge tensors over the model's. After an error, some are written and others are not.

    Args:
        model (`PreTrainedModel`): The model.
        places ([`Places`]): What its tensors are made of.
        found (`Mapping[str, tuple[Tensor, ...]]`): Its tensors, as [`Places.find`] returns them.
        merge ([`Merge`]): The merge.
        keys (`Collection[str]`): The names on disk of the tensors to merge.
    """
    from huggingface_hub.utils import tqdm

    names = {name: found[target_name] for name, target_name in places.direct.items() if name in keys}
    # Of two tensors on disk that have become one in memory the last is written: threads would mix both.
    last = {id(target): name for name, targets in names.items() for target in targets}
    jobs: list[_Job] = []
    for name, all_targets in names.items():
        targets = tuple(target for target in all_targets if last[id(target)] == name)
        if targets:
            blocks = merge.blocks(name, _rows_in(merge.shape(name), targets), targets[0].device)
            jobs += [_Job(merge, name, block, targets) for block in blocks]

    # An accelerator computes one block at a time, and would need memory for each block that waits.
    if all(job.targets[0].device.type == "cpu" for job in jobs):
        written = in_order(_Job.write, jobs)
    else:
        written = map(_Job.write, jobs)
    bar = tqdm(written, total=len(jobs), desc="Merging", unit="block", delay=1, leave=False, name="dem_hub.merging")
    for _ in bar:
        pass
    for target_name, values in _converted(model, places, merge, keys, found):
        if target_name not in found:
            raise CoefficientError(f"'{target_name}' is made of several tensors, and is not where it was. {REMEDY}")
        for target in found[target_name]:
            target.copy_(values)


def _rows_in(shape: tuple[int, ...], targets: tuple[Tensor, ...]) -> Index:
    """Return the part of a merged tensor that the model has: of a vocabulary that became smaller, the first rows."""
    rows = min([shape[0], *(len(target) for target in targets)]) if shape else 0
    return full_index((rows, *shape[1:])) if shape else ()


def _converted(
    model: "PreTrainedModel",
    places: Places,
    merge: Merge,
    keys: Collection[str],
    found: Mapping[str, tuple[Tensor, ...]],
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and values of the model's tensors that are made of several on disk, such as a mixture's experts.

    They are converted by transformers' own converters, as its loader does. A tensor in memory is made of all its
    tensors on disk, also of those that are not in `keys`.
    """
    touched = {name: parts for name, parts in places.fused.items() if any(key in keys for key, _ in parts)}
    if not touched:
        return
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter

    by_pattern: dict[str, WeightConverter] = {}
    for entry in get_model_conversion_mapping(model):
        if isinstance(entry, WeightConverter):
            by_pattern.update(dict.fromkeys(entry.source_patterns, entry))
    for name, parts in touched.items():
        converter = deepcopy(by_pattern[parts[0][1]])
        target = found[name][0]
        for key, pattern in parts:
            merged = partial(merge.tensor, key, full_index(merge.shape(key)), target.device, target.dtype)
            # The converter calls what is not a future.
            converter.add_tensor(name, key, pattern, merged)  # type: ignore[arg-type]
        converted = converter.convert(name, model=model, config=model.config)
        for target_name, values in converted.items():
            yield target_name, values[0] if isinstance(values, list) else values
