"""Ways out for a step that does not fit. Each is planned too, and only those that fit are told."""

from collections.abc import Iterator
from dataclasses import replace

import torch

from dem_hub.defaults import SEARCH_DTYPE
from dem_hub.files.sizes import format_size
from dem_hub.planning.placement import CPU, DIVIDED
from dem_hub.planning.planner import Planner
from dem_hub.planning.step import Step, StepName, Wishes

# What is tried of each kind, the least change first.
_WINDOWS = (4, 2, 1)
_GPUS = (2, 4, 8)

# A change in words, and the wishes with it.
_Change = tuple[str, Wishes]


def with_ways_out(planner: Planner, name: StepName, wishes: Wishes) -> Step:
    """Plan a step, and say what to change if it does not fit.

    Raises:
        [`~dem_hub.errors.ConfigError`]: What [`Planner.plan`] raises.
    """
    step = planner.plan(name, wishes)
    if step.verdict == "fits":
        return step
    ways = []
    for kind in _kinds(planner, name, wishes):
        for text, changed in kind:
            other = planner.plan(name, changed)
            if other.verdict == "fits":
                ways.append(f"{text}: {_memory_text(other)}")
                break
    return replace(step, ways_out=(*ways, *_other_ways(planner, step)))


def _kinds(planner: Planner, name: StepName, wishes: Wishes) -> Iterator[list[_Change]]:
    """Yield the changes of each kind, the least one first."""
    if name == "merge":
        return
    is_wide = planner.dtype(wishes.dtype or (SEARCH_DTYPE if name == "search" else None)) == torch.float32
    if is_wide:
        yield [("--dtype bfloat16", replace(wishes, dtype="bfloat16"))]
    if name == "search":
        sizes = [size for size in _WINDOWS if size < wishes.batch_size]
        yield [(f"--batch-size {size}", replace(wishes, batch_size=size)) for size in sizes]
    if name == "load" and wishes.quantize is None:
        yield [("--quantize 8bit", replace(wishes, quantize="8bit"))]
        yield [("--quantize 4bit", replace(wishes, quantize="4bit"))]
    if name != "serve" and wishes.device_map not in DIVIDED:
        yield [("--device-map auto", replace(wishes, device_map="auto"))]
    if name != "serve" and wishes.accelerators and CPU in wishes.memory:
        yield [("--device-map cpu", replace(wishes, device_map=CPU))]
    if len(wishes.accelerators) == 1:
        yield [_with_gpus(wishes, count) for count in _GPUS]


def _with_gpus(wishes: Wishes, count: int) -> _Change:
    nbytes = wishes.memory[wishes.accelerators[0]]
    others = {place: size for place, size in wishes.memory.items() if place == CPU}
    memory = {str(number): nbytes for number in range(count)} | others
    return f"{count} such GPUs", replace(wishes, memory=memory, device_map="auto")


def _other_ways(planner: Planner, step: Step) -> Iterator[str]:
    """Yield ways out that change what is on disk, or another step."""
    facts = planner.facts
    tight = [need for need in step.needs if not need.is_on_disk and need.verdict == "may not fit"]
    is_bound_alone = step.verdict == "may not fit" and bool(tight)
    if is_bound_alone and all(need.most - facts.vector_bytes <= need.there for need in tight):
        yield f"vectors of a smaller codec, such as lowrank: these take {format_size(facts.vector_bytes)}"
    if is_bound_alone and step.name in ("load", "serve"):
        yield "dem-hub merge first: a merged model is loaded as any other, without vectors"
    if step.name == "merge" and any(need.is_on_disk for need in step.needs if need.verdict != "fits"):
        largest = max(shard.file_size for shard in planner.planned.shards)
        yield f"dem-hub merge --push-to-hub without -o: {format_size(largest)} on the disk at a time"


def _memory_text(step: Step) -> str:
    """Return the most that a step takes on each device."""
    needs = [need for need in step.needs if not need.is_on_disk]
    return ", ".join(f"{format_size(need.most)} on {need.place}" for need in needs)
