"""Groups of a model's tensors: by what they are for, and by the layer they belong to."""

import math
import re
from collections.abc import Mapping

# What a tensor is for; or which layers it is in, `layers 0-7`; or all that no other group of a coefficient has.
EMBEDDING, ATTENTION, MLP, OTHER, REST = "embedding", "attention", "mlp", "other", "rest"


KINDS = (EMBEDDING, ATTENTION, MLP, OTHER)


_LAYERS = re.compile(r"layers (\d+)-(\d+)")


def layer_run(group: str) -> range | None:
    """The layers of a group such as `layers 0-7`; `None` where it is no such group."""
    match = _LAYERS.fullmatch(group)
    return range(int(match[1]), int(match[2]) + 1) if match else None


_LAYER = re.compile(r"(?P<layer>.*?\.\d+)\.")


def layer_of(key: str) -> str:
    """The layer that a tensor belongs to, or its own name where it is outside the layers.

    Example:

    ```python
    >>> from dem_hub.checkpoints.tensor_groups import layer_of
    >>> layer_of("model.layers.3.mlp.up_proj.weight"), layer_of("model.norm.weight")
    ('model.layers.3', 'model.norm.weight')

    ```
    """
    match = _LAYER.match(key)
    return match["layer"] if match else key


def norms_by_layer(norms: Mapping[str, float]) -> dict[str, float]:
    """The norm of each layer's delta, from those of its tensors, in the order of the layers."""
    squares: dict[str, float] = {}
    for key, norm in norms.items():
        squares[layer_of(key)] = squares.get(layer_of(key), 0.0) + norm**2
    ordered = sorted(
        squares, key=lambda layer: [(part.rjust(9, "0") if part.isdigit() else part) for part in layer.split(".")]
    )
    return {layer: math.sqrt(squares[layer]) for layer in ordered}
