"""What a merge will take, worked out from headers before any weight moves: what comes down, what is read and written, memory, disk, time."""

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from dem_hub.checkpoints.lazy import DTYPES
from dem_hub.codecs.component import StoredDelta
from dem_hub.errors import DiskSpaceError
from dem_hub.files.resumable import partial_path
from dem_hub.files.sizes import format_size
from dem_hub.merging.merge import BLOCK, FACTORED_BLOCK
from dem_hub.models.planned import PlannedModel
from dem_hub.numerics.noise import Noise
from dem_hub.numerics.rounding import round_into
from dem_hub.numerics.slices import full_index
from dem_hub.numerics.threads import one_core

_TRIED = (512, 512)  # the sum that is done to see how long others will take


@dataclass(frozen=True)
class Estimate:
    """A merge that has not begun: how many tensors there are and how many of them change, and what it takes, in bytes and seconds.

    `seconds` are of computing; what the disk and the line take comes on top.
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
        there = f", {format_size(self.written)} of which are there already" if self.written else ""
        down = f"downloads {format_size(self.downloads)}, " if self.downloads else ""
        return (
            f"{self.changed} of {self.tensors} tensors change; {down}reads {format_size(self.reads)}, writes {format_size(self.writes)}{there} "
            f"({format_size(self.free)} free), about {format_size(self.memory)} of memory beyond the libraries, and {_time(self.seconds)} of computing"
        )


def estimate(model: PlannedModel, place: Path, room: int, written: int = 0) -> Estimate:
    """Look at the headers of a merge.

    Args:
        model ([`PlannedModel`]): what comes; names, shapes and identity were checked as it was planned.
        place (`Path`): the folder that it is written to.
        room (`int`): how many bytes are there at once.
        written (`int`): how many an earlier run left, which are not written again.

    Raises:
        `DiskSpaceError`: less is free there, or where downloads are kept, than it takes.
    """
    merge, reads, changed, directions = model.merge, 0, 0, 0
    active = {name: [stored for _, stored in merge.active(name)] for name in merge.base}
    for name, deltas in active.items():
        reads += merge.base[name].nbytes + sum(map(_bytes, deltas))
        size = math.prod(merge.base[name].shape)
        changed += size if deltas else 0
        directions += size * sum(map(_rank, deltas))
    free = check_room(model, place, room)
    downloads = _downloads(model)
    threads = torch.get_num_threads()
    seconds = changed * _seconds_each(round(directions / max(changed, 1))) / threads
    widest = max((merge.dtype(name, model.torch_dtype).itemsize for name in merge.base), default=0)
    memory = max(8 * BLOCK, widest * FACTORED_BLOCK) * (threads + 2)  # blocks that `in_order` holds
    return Estimate(
        len(active), sum(map(bool, active.values())), downloads, reads, model.nbytes, memory, free, seconds, written
    )


def check_room(model: PlannedModel, place: Path, room: int) -> int:
    """What is free where a model goes, once that and what comes down have room; what an earlier run wrote is used again, or removed.

    Raises:
        `DiskSpaceError`: less is free there, or where downloads are kept, than it takes.
    """
    downloads, cache = _downloads(model), next((remote.cache for remote in model.opened.remotes), place)
    there, kept = _existing(place), _existing(cache)
    free = shutil.disk_usage(there).free + sum(path.stat().st_size for path in partial_path(place).glob("*"))
    together = there.stat().st_dev == kept.stat().st_dev
    if room + (downloads if together else 0) > free:
        more = f" and {format_size(downloads)} of downloads in '{cache}'" if downloads and together else ""
        raise DiskSpaceError(
            f"The merged model takes {format_size(room)} in '{place}'{more}, and {format_size(free)} are free there. Make room first."
        )
    if not together and downloads > shutil.disk_usage(kept).free:
        raise DiskSpaceError(
            f"{format_size(downloads)} come down to '{cache}', and {format_size(shutil.disk_usage(kept).free)} are free there. Make room first, or set HF_HOME."
        )
    return free


def _downloads(model: PlannedModel) -> int:
    return sum(remote.nbytes for remote in model.opened.remotes)


def _existing(place: Path) -> Path:
    """The folder, or the one that it will be made in."""
    place = place.resolve()
    return next(folder for folder in (place, *place.parents) if folder.exists())


def _seconds_each(directions: int) -> float:
    """What an element takes in one thread, by a sum of so many directions that is done here and now."""
    base, result = (
        torch.zeros(_TRIED, dtype=torch.bfloat16, device="cpu"),
        torch.empty(_TRIED, dtype=torch.bfloat16, device="cpu"),
    )
    left, right = (
        torch.ones(shape, dtype=torch.float32, device="cpu")
        for shape in ((_TRIED[0], directions), (directions, _TRIED[1]))
    )
    noise = Noise.of(0, "", full_index(_TRIED), _TRIED, base.device)
    taken = []
    with one_core():
        for _ in range(3):  # the first finds nothing ready
            start = time.perf_counter()
            round_into(result, base, (left, right), noise)
            taken.append(time.perf_counter() - start)
    return min(taken) / math.prod(_TRIED)


def _rank(stored: StoredDelta) -> int:
    return sum(component.parts["left"].get_shape()[1] for component in stored.components if "left" in component.parts)


def _bytes(stored: StoredDelta) -> int:
    parts = [part for component in stored.components for part in component.parts.values()]
    parts += [stored.rows] if stored.rows is not None else []
    return sum(DTYPES[part.get_dtype()].itemsize * math.prod(part.get_shape()) for part in parts)


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{max(seconds, 1):.0f} s"
