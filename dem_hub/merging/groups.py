"""Groups of a vector's tensors, by what the tensors are for or by the layers they are in.

A vector restricted to a group is a vector of its own: a view of the deltas. So whatever holds for vectors in a merge,
such as their order and their rounding, holds for groups too, and a coefficient for each group is no more than a
coefficient for each of several vectors.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.tensor_groups import KINDS, REST, layer_number, layer_run
from dem_hub.defaults import Granularity
from dem_hub.errors import CoefficientError

_Delta = TypeVar("_Delta")

# Runs of layers in granularity "block". Chosen by hand; benchmarks/README.md has results of searches with it.
BLOCKS = 4


def take_apart(
    deltas: Mapping[str, _Delta], groups: Sequence[str], base: Base, name: str
) -> dict[str, dict[str, _Delta]]:
    """Divide the deltas of a vector into groups.

    Args:
        deltas (`Mapping`): What the vector changes, by checkpoint key.
        groups (`Sequence[str]`): Kinds of tensors or runs of layers, and `"rest"`; see
            [`dem_hub.merging.coefficients.check_coefficient`].
        base ([`Base`]): The base, whose architecture tells what the tensors are for.
        name (`str`): Name of the vector, for messages.

    Returns:
        `dict[str, dict]`: The deltas by group, and in each group by checkpoint key. All groups are in it, also empty
            ones.

    Raises:
        [`~dem_hub.errors.CoefficientError`]: If a tensor is in no group, or the base's architecture is needed and not
            known.
    """
    runs: dict[str, range] = {}
    for group in groups:
        run = layer_run(group)
        if run is not None:
            runs[group] = run
    kinds: Mapping[str, str] = {}
    if set(groups) & set(KINDS):
        kinds = _kinds(base)
    divided: dict[str, dict[str, _Delta]] = {group: {} for group in groups}
    left_over = []
    for key, delta in deltas.items():
        group = _group_of(key, runs, kinds)
        if group not in divided:
            group = REST
        if group in divided:
            divided[group][key] = delta
        else:
            left_over.append(key)
    if left_over:
        raise CoefficientError(
            f"The coefficients of '{name}' are for {', '.join(map(repr, groups))}, and {len(left_over)} tensors that "
            f"it changes are in none of these, '{left_over[0]}' among them. Give '{REST}' a coefficient."
        )
    return divided


def groups_of(granularity: Granularity, keys: Iterable[str], base: Base) -> tuple[str, ...]:
    """Return the groups of a granularity that any of these tensors are in.

    Args:
        granularity (`str`): `"group"`: by what tensors are for. `"block"`: four runs of layers, and what is in no
            layer. `"model"`: no groups. Runs are of layer numbers: in an encoder-decoder each run is of both stacks,
            and their count is that of the longer one.
        keys (`Iterable[str]`): Checkpoint keys of the tensors.
        base ([`Base`]): The base, whose architecture tells what the tensors are for.

    Raises:
        [`~dem_hub.errors.CoefficientError`]: If the granularity is `"group"` and the base's architecture is not
            known.
    """
    if granularity == "group":
        kinds = _kinds(base)
        present = {kinds.get(key) for key in keys}
        groups = [kind for kind in KINDS if kind in present]
        has_rest = None in present
    elif granularity == "block":
        layers = {layer_number(key) for key in keys}
        groups = _runs(1 + max((layer for layer in layers if layer is not None), default=-1))
        has_rest = None in layers
    else:
        return ()
    if has_rest:
        groups.append(REST)
    return tuple(groups)


def _group_of(key: str, runs: Mapping[str, range], kinds: Mapping[str, str]) -> str:
    """Return the run that has the tensor's layer, or what the tensor is for; `REST` if neither is known."""
    layer = layer_number(key)
    if layer is not None:
        for group, run in runs.items():
            if layer in run:
                return group
    return kinds.get(key, REST)


def _runs(count: int) -> list[str]:
    """Divide this many layers into `BLOCKS` runs, fewer if there are fewer layers than that."""
    starts = [count * number // BLOCKS for number in range(BLOCKS + 1)]
    return [f"layers {start}-{stop - 1}" for start, stop in pairwise(starts) if stop > start]


def _kinds(base: Base) -> Mapping[str, str]:
    if base.architecture is None:
        raise CoefficientError(
            f"What the tensors of '{base}' are for is not known: it has no config.json, or code of its own. Give "
            "coefficients for runs of layers, such as 'layers 0-7'."
        )
    return base.architecture.groups
