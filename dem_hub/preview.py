"""What a merge will take, worked out from headers before any weight moves: bytes to download, to write, and in memory at once."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from dem_hub.checkpoint import DTYPES
from dem_hub.codecs.stored import StoredDelta
from dem_hub.errors import DiskSpaceError
from dem_hub.merged import MergedModel
from dem_hub.merging import BLOCK
from dem_hub.unfinished import unfinished_folder


@dataclass(frozen=True)
class Preview:
    """A merge that has not begun: how many tensors there are and how many of them change, and what it takes, in bytes."""

    tensors: int
    changed: int
    reads: int
    writes: int
    memory: int
    free: int
    written: int = 0

    def __str__(self) -> str:
        there = f", {_text(self.written)} of which are there already" if self.written else ""
        return (
            f"{self.changed} of {self.tensors} tensors change; reads {_text(self.reads)}, writes {_text(self.writes)}{there} "
            f"({_text(self.free)} free), about {_text(self.memory)} of memory beyond the libraries"
        )


def preview(model: MergedModel, place: Path, room: int, written: int = 0) -> Preview:
    """Look at the headers of a merge.

    Args:
        model ([`MergedModel`]): what comes; names, shapes and identity were checked as it was planned.
        place (`Path`): the folder that it is written to.
        room (`int`): how many bytes are there at once.
        written (`int`): how many an earlier run left, which are not written again.

    Raises:
        `DiskSpaceError`: less is free there than it takes.
    """
    merge, reads, changed = model.merge, 0, 0
    for name, info in merge.base.items():
        active = merge.active(name)
        changed += bool(active)
        reads += info.nbytes + sum(_bytes(stored) for _, stored in active)
    there = place.resolve()
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free + sum(path.stat().st_size for path in unfinished_folder(place).glob("*"))  # used again, or removed
    if room > free:
        raise DiskSpaceError(f"The merged model takes {_text(room)} in '{place}', and {_text(free)} are free there. Make room first.")
    in_flight = torch.get_num_threads() + 2  # blocks that `in_order` holds
    return Preview(len(merge.base), changed, reads, model.nbytes, 8 * BLOCK * in_flight, free, written)


def _bytes(stored: StoredDelta) -> int:
    parts = [part for component in stored.components for part in component.parts.values()]
    parts += [stored.rows] if stored.rows is not None else []
    return sum(DTYPES[part.get_dtype()].itemsize * math.prod(part.get_shape()) for part in parts)


def _text(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"
