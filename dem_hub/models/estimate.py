"""The cost of a merge, estimated from headers: downloads, reads, writes, memory, disk space and time.

The computing time is that of a small merge of the same average rank, which is timed here and now. The disk and the
network are not timed: they add to it.
"""

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from dem_hub.checkpoints.lazy import DTYPES, LazyTensor
from dem_hub.codecs.component import StoredDelta
from dem_hub.errors import DiskSpaceError
from dem_hub.files.resumable import partial_path
from dem_hub.files.sizes import format_size
from dem_hub.merging.dequantized_base import DequantizedTensors
from dem_hub.merging.merge import Merge, block_memory
from dem_hub.merging.merged_base import MergedTensors
from dem_hub.models.planned import PlannedModel
from dem_hub.numerics.noise import Noise
from dem_hub.numerics.passes import expect_work
from dem_hub.numerics.products import Product
from dem_hub.numerics.rounding import is_compiled, round_into
from dem_hub.numerics.slices import full_index
from dem_hub.numerics.threads import most_held, one_core

# Rows and columns of the merge that is timed: large enough that starting the kernel does not count, and done in
# milliseconds. Chosen by hand, not measured.
_TIMED_SHAPE = (512, 512)

# Bytes an element while bitsandbytes quantizes a tensor on the CPU: four intermediate results in 32 bits, counted in
# the code of 0.50.2. The dequantized tensors that are kept take less.
_QUANTIZING_BYTES = 16


@dataclass(frozen=True)
class Estimate:
    """The cost of a merge, known before it.

    `tensors` and `changed` are counts of tensors, `seconds` is the time of computing alone, and everything else is in
        bytes: `downloads`
    from the Hub, `reads` from files, `writes` of the merged model, `memory` beyond that of the libraries, `free` on
        the disk, and what an
    interrupted export has `written` already.
    """

    tensors: int
    changed: int
    downloads: int
    reads: int
    writes: int
    memory: int
    free: int
    seconds: float
    written: int = 0

    def __str__(self) -> str:
        downloads = f"downloads {format_size(self.downloads)}, " if self.downloads else ""
        written = f", {format_size(self.written)} of which are there already" if self.written else ""
        return (
            f"{self.changed} of {self.tensors} tensors change; {downloads}reads {format_size(self.reads)}, writes "
            f"{format_size(self.writes)}{written} ({format_size(self.free)} free), about {format_size(self.memory)} "
            f"of memory beyond the libraries, and {_format_seconds(self.seconds)} of computing"
        )


@dataclass(frozen=True)
class Room:
    """The disk of a folder: the bytes that are needed there, and those that are free."""

    folder: Path
    needed: int
    free: int


def estimate(model: PlannedModel, folder: Path, room: int, written: int = 0) -> Estimate:
    """Estimate what a merge will take, from headers.

    Args:
        model ([`PlannedModel`]): The model. Names, shapes and identity were checked when it was planned.
        folder (`Path`): Where it is written to.
        room (`int`): Bytes that are on the disk at the same time.
        written (`int`, *optional*, defaults to 0): Bytes that an interrupted export has written already.

    Raises:
        [`~dem_hub.errors.DiskSpaceError`]: If the disk, or that of the Hub's cache, has less room than it takes.
    """
    merge = model.merge
    reads = 0
    changed_tensors = 0
    changed_elements = 0
    rank_elements = 0  # the sum over all elements of the rank of their deltas
    widest = 0
    for name in merge.base:
        changed_tensors += bool(merge.active(name))
        widest = max(widest, merge.dtype(name, model.torch_dtype).itemsize)
    rounds = rounds_of(merge)
    for each in rounds:
        for name, info in each.base.items():
            deltas = [stored for _, stored in each.active(name)]
            elements = math.prod(info.shape)
            reads += sum(map(_nbytes, deltas))
            if each is rounds[-1]:
                reads += info.nbytes
            if deltas:
                changed_elements += elements
                rank_elements += elements * sum(map(_rank, deltas))
    # The merge that is timed is then computed by what will compute the whole one.
    expect_work(changed_elements)
    mean_rank = round(rank_elements / max(changed_elements, 1))
    return Estimate(
        tensors=len(merge.base),
        changed=changed_tensors,
        downloads=_downloads(model),
        reads=reads,
        writes=model.nbytes,
        memory=block_memory(widest) * most_held() + max(map(quantizing_memory, rounds)),
        free=check_room(model, folder, room),
        seconds=changed_elements * _seconds_per_element(mean_rank) / torch.get_num_threads(),
        written=written,
    )


def rounds_of(merge: Merge) -> list[Merge]:
    """Return a merge, and those below it: a base that is a recipe is merged while it is read, and so is its base."""
    rounds = [merge]
    while isinstance(below := rounds[-1].origin or rounds[-1].base, MergedTensors):
        rounds.append(below.merge)
    return rounds


def quantizing_memory(merge: Merge) -> int:
    """Return the bytes that it takes to quantize and dequantize the largest layer of a base; 0 if it is taken as it is."""
    if not isinstance(merge.base, DequantizedTensors):
        return 0
    return _QUANTIZING_BYTES * max(math.prod(merge.base[name].shape) for name in merge.base.layers.is_transposed)


def check_room(model: PlannedModel, folder: Path, room: int) -> int:
    """Return the free bytes where a model is written, once it is known that the model and its downloads have room.

    What an interrupted export has written counts as free, because it is used again or removed.

    Raises:
        [`~dem_hub.errors.DiskSpaceError`]: If the disk, or that of the Hub's cache, has less room than it takes.
    """
    here, *others = rooms(model, folder, room)
    needed_for_downloads = ""
    if here.needed > room:
        needed_for_downloads = f" and {format_size(here.needed - room)} of downloads in '{_cache(model, folder)}'"
    if here.needed > here.free:
        raise DiskSpaceError(
            f"The merged model takes {format_size(room)} in '{folder}'{needed_for_downloads}, and "
            f"{format_size(here.free)} are free there. Make room first."
        )
    for cache in others:
        if cache.needed > cache.free:
            raise DiskSpaceError(
                f"{format_size(cache.needed)} come down to '{cache.folder}', and {format_size(cache.free)} are free "
                "there. Make room first, or set HF_HOME."
            )
    return here.free


def rooms(model: PlannedModel, folder: Path, room: int) -> list[Room]:
    """Return what is needed on the disk of a folder, and on that of the Hub's cache if it is another one.

    Args:
        model ([`PlannedModel`]): The model.
        folder (`Path`): Where it is written to.
        room (`int`): Bytes that are written there.
    """
    downloads = _downloads(model)
    cache = _cache(model, folder)
    model_disk = _existing_folder(folder)
    cache_disk = _existing_folder(cache)
    free = shutil.disk_usage(model_disk).free
    free += sum(path.stat().st_size for path in partial_path(folder).glob("*"))
    if model_disk.stat().st_dev == cache_disk.stat().st_dev:
        return [Room(folder, room + downloads, free)]
    return [Room(folder, room, free), Room(cache, downloads, shutil.disk_usage(cache_disk).free)]


def _cache(model: PlannedModel, folder: Path) -> Path:
    """Return the Hub's cache that downloads go to; if there are none, the folder itself."""
    for remote in model.opened.remotes:
        return remote.cache
    return folder


def _downloads(model: PlannedModel) -> int:
    return sum(remote.nbytes for remote in model.opened.remotes)


def _existing_folder(folder: Path) -> Path:
    """Return the folder, or the nearest of its parents that exists already."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return folder


def _seconds_per_element(rank: int) -> float:
    """Time a merge of one low-rank delta on one core, and return the seconds for each of its elements."""
    rows, columns = _TIMED_SHAPE
    base = torch.zeros(_TIMED_SHAPE, dtype=torch.bfloat16, device="cpu")
    result = torch.empty(_TIMED_SHAPE, dtype=torch.bfloat16, device="cpu")
    left = torch.ones((rows, rank), dtype=torch.float32, device="cpu")
    right = torch.ones((rank, columns), dtype=torch.float32, device="cpu")
    noise = Noise.of(0, "", full_index(_TIMED_SHAPE), _TIMED_SHAPE, base.device)
    taken = []
    with one_core():
        # The first run includes warm-up: compiled code is loaded and memory is touched for the first time.
        for _ in range(3):
            start = time.perf_counter()
            total = base
            if not is_compiled(base.dtype, result.dtype, base.device):
                total = base.double()
            round_into(result, total, Product.of(left, right), noise)
            taken.append(time.perf_counter() - start)
    return min(taken) / math.prod(_TIMED_SHAPE)


def _rank(stored: StoredDelta) -> int:
    """Return the sum of the ranks of a stored delta's components; one without factors has none."""
    # A quantized left factor lies transposed, so only the right one has its rank at the same place in every form.
    return sum(component.parts["right"].get_shape()[0] for component in stored.components if "right" in component.parts)


def _nbytes(stored: StoredDelta) -> int:
    """Return the bytes of a stored delta in its files."""
    tensors: list[LazyTensor] = []
    for component in stored.components:
        tensors += component.parts.values()
    if stored.rows is not None:
        tensors.append(stored.rows)
    return sum(DTYPES[tensor.get_dtype()].itemsize * math.prod(tensor.get_shape()) for tensor in tensors)


def _format_seconds(seconds: float) -> str:
    if seconds >= 120:
        return f"{seconds / 60:.0f} minutes"
    return f"{max(seconds, 1):.0f} s"
