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
    """One block of a tensor on disk, and the model's tensors that it is copied into."""

    name: str
    block: Index
    targets: tuple[Tensor, ...]


@torch.no_grad()
def write_merged(
    model: "PreTrainedModel",
    places: Places,
    found: Mapping[str, tuple[Tensor, ...]],
    merge: Merge,
    keys: Collection[str],
) -> None:
    """Merge tensors and copy them over the model's.

    Args:
        model (`PreTrainedModel`): The model.
        places ([`Places`]): What its tensors are made of.
        found (`Mapping[str, tuple[Tensor, ...]]`): Its tensors, as [`Places.find`] returns them.
        merge ([`Merge`]): The merge.
        keys (`Collection[str]`): The names on disk of the tensors to merge.
    """
    from huggingface_hub.utils import tqdm

    jobs: list[_Job] = []
    for name, target_name in places.direct.items():
        if name in keys:
            targets = found[target_name]
            blocks = merge.blocks(name, _rows_in(merge.shape(name), targets), targets[0].device)
            jobs += [_Job(name, block, targets) for block in blocks]

    def merged(job: _Job) -> Tensor:
        return merge.tensor(job.name, job.block, job.targets[0].device, job.targets[0].dtype)

    # An accelerator computes one block at a time, and would need memory for each block that waits.
    if all(job.targets[0].device.type == "cpu" for job in jobs):
        results = in_order(merged, jobs)
    else:
        results = map(merged, jobs)
    bar = tqdm(results, total=len(jobs), desc="Merging", unit="block", delay=1, leave=False, name="dem_hub.merging")
    for job, values in zip(jobs, bar, strict=True):
        for target in job.targets:
            target[job.block] = values
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
