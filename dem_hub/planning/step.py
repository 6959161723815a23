"""What is planned: how a model is to be loaded and searched, and what each step needs at each place.

A step is loading a merged model, searching coefficients, writing the merged model, or serving it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dem_hub.defaults import BATCH_SIZE, MAX_LENGTH, METHOD
from dem_hub.models.estimate import Room
from dem_hub.planning.placement import CPU, DISK, Quantize, is_accelerator

StepName = Literal["load", "search", "merge", "serve"]
STEPS: tuple[StepName, ...] = ("load", "search", "merge", "serve")

Verdict = Literal["fits", "may not fit", "does not fit"]


@dataclass(frozen=True)
class Wishes:
    """How a model is to be loaded and searched, and on what.

    `memory` are the bytes of each device: the numbers of GPUs, and `cpu`. `dtype` is that of all steps; `None` is the
    recipe's or the base's for all but a search, and float32 for that. `folder` is where a model would be written. The
    others mean the same as in [`DEMModel.from_pretrained`] and [`search_coefficients`].
    """

    memory: Mapping[str, int]
    dtype: str | None = None
    quantize: Quantize | None = None
    device_map: str = "auto"
    method: str = METHOD
    max_forward: float | None = None
    batch_size: int = BATCH_SIZE
    max_length: int = MAX_LENGTH
    folder: Path = Path()

    @property
    def accelerators(self) -> list[str]:
        """The devices that are not the CPU."""
        return [place for place in self.memory if is_accelerator(place)]


@dataclass(frozen=True)
class Need:
    """What a step needs at one place, in bytes: what it keeps there, the most that it takes meanwhile, and what there is."""

    place: str
    keeps: int
    most: int
    there: int

    @property
    def verdict(self) -> Verdict:
        """Whether it fits. The most is a bound, so that what is between it and what is kept may fit or not."""
        if self.most <= self.there:
            return "fits"
        return "may not fit" if self.keeps <= self.there else "does not fit"

    @property
    def is_on_disk(self) -> bool:
        """True if the place is a disk, and not a device."""
        return self.place.startswith(DISK)


@dataclass(frozen=True)
class Step:
    """What one step takes: what is needed where, forward passes if it is a search, and what else to know.

    `refused` says why the step cannot be done at all, and `ways_out` what to change where it does not fit.
    """

    name: StepName
    needs: tuple[Need, ...] = ()
    num_forward: float | None = None
    num_forward_held_out: float | None = None
    notes: tuple[str, ...] = ()
    refused: str = ""
    ways_out: tuple[str, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """The worst of all places."""
        verdicts = {need.verdict for need in self.needs}
        if self.refused or "does not fit" in verdicts:
            return "does not fit"
        return "may not fit" if "may not fit" in verdicts else "fits"


def needs_of(parts: Mapping[str, int], memory: Mapping[str, int], beside: Callable[[str], int]) -> list[Need]:
    """Return what is needed on each device, without the disk.

    Args:
        parts (`Mapping[str, int]`): Bytes of the model at each place.
        memory (`Mapping[str, int]`): Bytes of each device.
        beside (`Callable`): Returns what is needed on a device beside the model, in bytes.
    """
    needs = []
    for place, keeps in sorted(parts.items()):
        if place != DISK:
            needs.append(Need(place, keeps, keeps + beside(place), memory[place]))
    return needs


def needs_on_disk(rooms: Sequence[Room]) -> list[Need]:
    """Return what is needed on each disk, without those on which nothing is."""
    needed = [room for room in rooms if room.needed]
    return [Need(f"{DISK} of {room.folder.resolve()}", room.needed, room.needed, room.free) for room in needed]


def on_cpu(nbytes: int, memory: Mapping[str, int]) -> list[Need]:
    """Return what is needed in the CPU's memory for a while, if anything is, and it is known how much that has."""
    if CPU not in memory or not nbytes:
        return []
    return [Need(CPU, 0, nbytes, memory[CPU])]
