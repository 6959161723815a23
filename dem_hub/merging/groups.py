"""A vector taken apart: groups of its tensors, by what they are for or by the layers they are in, each a vector of its own.

A vector restricted to a group is a view of its deltas. So whatever holds for vectors, in a merge, its order and its rounding, holds for
groups, and a coefficient for each group is no more than a coefficient for each of more vectors.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.tensor_groups import KINDS, REST, layer_number, layer_run
from dem_hub.defaults import Granularity
from dem_hub.errors import CoefficientError

_Delta = TypeVar("_Delta")

BLOCKS = 4  # runs of layers


def take_apart(
    deltas: Mapping[str, _Delta], groups: Sequence[str], base: Base, name: str
) -> dict[str, dict[str, _Delta]]:
    """The tensors of a vector by group.

    Args:
        deltas (`Mapping`): what the vector changes, by checkpoint key.
        groups (`Sequence[str]`): see [`dem_hub.merging.coefficients.check_coefficient`].
        base ([`Base`]): whose architecture says what the tensors are for.
        name (`str`): of the vector, for messages.

    Raises:
        `CoefficientError`: a tensor that is in no group, or a base whose architecture is not known.
    """
    runs = {group: layer_run(group) for group in groups}
    kinds = _kinds(base) if set(groups) & set(KINDS) else {}
    found: dict[str, dict[str, _Delta]] = {group: {} for group in groups}
    left = []
    for key, delta in deltas.items():
        layer = layer_number(key)
        owners = [
            group
            for group, run in runs.items()
            if (layer in run if run is not None and layer is not None else kinds.get(key) == group)
        ]
        owner = owners[0] if owners else REST
        if owner in found:
            found[owner][key] = delta
        else:
            left.append(key)
    if left:
        raise CoefficientError(
            f"The coefficients of '{name}' are for {', '.join(map(repr, groups))}, and {len(left)} tensors that it changes are in none of "
            f"these, '{left[0]}' among them. Give '{REST}' a coefficient."
        )
    return found


def groups_of(granularity: Granularity, keys: Iterable[str], base: Base) -> tuple[str, ...]:
    """The groups of a granularity that have any of these tensors.

    Args:
        granularity (`str`): `group`, by what tensors are for; `block`, by four runs of layers, and what is in no layer; `model`: none.
            Runs are by number: of an encoder-decoder, each is of both, and of as many layers as the longer one has.
        keys (`Iterable[str]`): checkpoint keys.
        base ([`Base`]): whose architecture says what the tensors are for.
    """
    changed = list(keys)
    if granularity == "group":
        kinds = _kinds(base)
        present = {kinds.get(key) for key in changed}
        return (*(kind for kind in KINDS if kind in present), *((REST,) if None in present else ()))
    if granularity == "block":
        layers = [layer_number(key) for key in changed]
        count = 1 + max((layer for layer in layers if layer is not None), default=-1)
        starts = [count * number // BLOCKS for number in range(BLOCKS + 1)]
        runs = [f"layers {start}-{stop - 1}" for start, stop in pairwise(starts) if stop > start]
        return (*runs, *((REST,) if None in layers else ()))
    return ()


def _kinds(base: Base) -> Mapping[str, str]:
    if base.architecture is None:
        raise CoefficientError(
            f"What the tensors of '{base}' are for is not known: it has no config.json, or code of its own. Give coefficients for runs of "
            "layers, such as 'layers 0-7'."
        )
    return base.architecture.groups
