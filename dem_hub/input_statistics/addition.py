"""Addition of what several processes saw: each runs the model over its own tokens, and sketches add up.

A layer can have run on some processes only, such as an expert that no token of the others reached.
"""

from typing import Any

import torch

from dem_hub.evaluation.processes import total, world_size
from dem_hub.input_statistics.gathering import Watch
from dem_hub.input_statistics.sketch import MomentSketch


def add_up(watch: Watch, device: torch.device) -> None:
    """Add what all processes saw to each other. All must call this together; each has the sum afterwards.

    Args:
        watch ([`Watch`]): What this process saw.
        device (`torch.device`): The device of this process's model.
    """
    sizes = {key: (sketch.size, sketch.rank) for key, sketch in watch.sketches.items()}
    everywhere: dict[str, tuple[int, int]] = {}
    for of_process, leaders in gathered((sizes, watch.leaders)):
        everywhere = of_process | everywhere
        watch.leaders = leaders | watch.leaders
    for key in sorted(everywhere):
        sketch = watch.sketches.get(key)
        if sketch is None:
            sketch = MomentSketch(*everywhere[key], device)
            watch.sketches[key] = sketch
        sketch.product = total(sketch.product, device)
        sketch.squares = total(sketch.squares, device)
    watch.tokens = int(total(torch.tensor(watch.tokens, device="cpu"), device))


def gathered(value: Any) -> list[Any]:
    """Return a small value of each process, in their order, on all of them."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values
