"""Groups of a model's tensors: by what they are for (attention, MLP, ...) and by the layer they belong to.

The layer of a tensor is read from its name on disk, so that no model is built. Every part of the library asks here,
so that a plot, a report and a coefficient for a run of layers mean the same layers.
"""

import math
import re
from collections.abc import Mapping

# What a tensor is for. `OTHER` are norms and whatever is outside the layers.
EMBEDDING = "embedding"
ATTENTION = "attention"
MLP = "mlp"
OTHER = "other"
KINDS = (EMBEDDING, ATTENTION, MLP, OTHER)

# The group of all tensors that are in no other group of a coefficient.
REST = "rest"

# Nine digits at the most: names come from files of strangers, and Python refuses to read numbers of 5,000 digits.
_LAYER = re.compile(r"(?:^|\.)([0-9]{1,9})\.")
_LAYER_RUN = re.compile(r"layers ([0-9]{1,9})-([0-9]{1,9})")


def layer_number(key: str) -> int | None:
    """Return the number of the layer that a tensor is in, the first number in its name; `None` outside the layers.

    Each stack of a model counts its own layers from 0: layer 3 of an encoder-decoder is one layer of the encoder
    and one of the decoder.

    Example:

    ```python
    >>> from dem_hub.checkpoints.tensor_groups import layer_number
    >>> layer_number("model.layers.3.mlp.experts.7.w1.weight"), layer_number("model.norm.weight")
    (3, None)
    >>> [layer_number(f"{stack}.block.3.layer.0.SelfAttention.q.weight") for stack in ("encoder", "decoder")]
    [3, 3]

    ```
    """
    match = _LAYER.search(key)
    return int(match[1]) if match else None


def layer_name(key: str) -> str:
    """Return the name of the layer that a tensor is in, or the tensor's own name outside the layers.

    Example:

    ```python
    >>> from dem_hub.checkpoints.tensor_groups import layer_name
    >>> layer_name("model.layers.3.mlp.up_proj.weight"), layer_name("model.norm.weight")
    ('model.layers.3', 'model.norm.weight')

    ```
    """
    match = _LAYER.search(key)
    return key[: match.end(1)] if match else key


def layer_run(group: str) -> range | None:
    """Return the layer numbers of a group such as `layers 0-7`; `None` for a name that is not of this form."""
    match = _LAYER_RUN.fullmatch(group)
    if match is None:
        return None
    first, last = map(int, match.groups())
    return range(first, last + 1)


def norms_by_layer(norms: Mapping[str, float]) -> dict[str, float]:
    """Return the norm of each layer's delta, in the order of the layers.

    Args:
        norms (`Mapping[str, float]`): The norm of each tensor's delta, by checkpoint key. Tensors outside the
            layers stay on their own.
    """
    squares: dict[str, float] = {}
    for key, norm in norms.items():
        layer = layer_name(key)
        squares[layer] = squares.get(layer, 0.0) + norm**2
    return {layer: math.sqrt(squares[layer]) for layer in sorted(squares, key=natural_order)}


def natural_order(layer: str) -> list[str]:
    """Return a sort key that puts layer 2 before layer 10."""
    return [part.rjust(9, "0") if part.isdigit() else part for part in layer.split(".")]
