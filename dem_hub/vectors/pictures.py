"""The pictures of vectors: their norms by layer and by what the tensors are for."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.opening import open_base
from dem_hub.checkpoints.tensor_groups import KINDS, layer_name, layer_number
from dem_hub.defaults import THEME, Theme
from dem_hub.files.names import MODEL_FILES
from dem_hub.files.scratch import scratch_folder
from dem_hub.hub.download import resolve
from dem_hub.hub.headers import resolve_headers
from dem_hub.hub.references import VectorSource
from dem_hub.plotting import draw_norms
from dem_hub.vectors.norms import tensor_norms

if TYPE_CHECKING:
    from dem_hub.plotting.picture import Picture
    from dem_hub.vectors.vector import DistributionVector

# The kind of all tensors where the base's architecture is not known.
_ALL = "all tensors"

# A weight is called by its module.
_WEIGHT = ".weight"


def plot_vector(
    vector: "DistributionVector",
    base: str | os.PathLike[str] | VectorSource | None,
    path: str | os.PathLike[str] | None,
    theme: Theme,
) -> "Picture":
    """Draw the norms of a vector, and save the picture if there is a path; see [`DistributionVector.plot`]."""
    source = vector.base.source if base is None else VectorSource.parse(base)
    # Names and shapes of the base are enough for most vectors, so that its weights are not downloaded.
    with scratch_folder() as scratch:
        opened = open_base(resolve_headers(source, MODEL_FILES, scratch=scratch))
        if opened.remotes and vector.config is None and not _is_factored(vector, opened):
            # A saved module's norm is that of its difference to the base, whose weights it needs.
            opened = open_base(resolve(source, MODEL_FILES))
        norms = tensor_norms(vector, opened)
        return draw_vector_norms(norms, opened, f"Norms of {Path(vector.name).name}", theme).saved(path)


def _is_factored(vector: "DistributionVector", base: Base) -> bool:
    return all(delta.is_factored for delta in vector.deltas(base).values())


def draw_vector_norms(norms: Mapping[str, float], base: Base, title: str, theme: Theme = THEME) -> "Picture":
    """Draw the norms of a vector by layer and kind.

    Args:
        norms (`Mapping[str, float]`): The norm of each tensor's delta, by the base's key.
        base ([`Base`]): The base, whose architecture tells what the tensors are for.
        title (`str`): The title.
        theme (`str`, defaults to `"light"`): `light` or `dark`.
    """
    kinds = {} if base.architecture is None else base.architecture.groups
    stacks = {_stack(key) for key in norms if layer_number(key) is not None}
    squares: dict[str, dict[int, float]] = {}
    outside: dict[str, float] = {}
    for key, norm in norms.items():
        layer = layer_number(key)
        if layer is None:
            outside[key.removesuffix(_WEIGHT)] = norm
            continue
        line = kinds.get(key, _ALL)
        if len(stacks) > 1:
            line = f"{_stack(key)} {line}"
        of_line = squares.setdefault(line, {})
        of_line[layer] = of_line.get(layer, 0.0) + norm**2
    layers: dict[str, dict[int, float]] = {}
    for line in sorted(squares, key=_kind_order):
        layers[line] = {layer: math.sqrt(square) for layer, square in squares[line].items()}
    return draw_norms(layers, outside, title, theme)


def _stack(key: str) -> str:
    """Return the stack that a layer is in, such as `encoder`: the first part of its name."""
    return layer_name(key).split(".")[0]


def _kind_order(line: str) -> tuple[str, int]:
    """Return a sort key that puts kinds in their usual order, stack by stack."""
    stack, _, kind = line.rpartition(" ")
    return stack, KINDS.index(kind) if kind in KINDS else len(KINDS)
