"""Coefficients: one number for each vector, or one number for each group of a vector's tensors."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from dem_hub.checkpoints.tensor_groups import KINDS, REST, layer_run
from dem_hub.errors import ConfigError
from dem_hub.files.shown import shown, shown_list
from dem_hub.hub.references import VectorSource

# A number, or one for each group of a vector's tensors.
Coefficient = float | Mapping[str, float]

# The coefficient of each vector, by id, folder or `VectorSource`, as callers may write it. A `Mapping` is invariant
# in its keys, so a type checker accepts each of these forms only if it is listed.
VectorCoefficients = (
    Mapping[str, float]
    | Mapping[VectorSource, float]
    | Mapping[str | VectorSource, float]
    | Mapping[str, Coefficient]
    | Mapping[VectorSource, Coefficient]
    | Mapping[str | VectorSource, Coefficient]
)


def check_coefficient(value: object, owner: str) -> None:
    """Check that a value is a coefficient: a finite number, or one for each of several groups of tensors.

    Args:
        value (`object`): What was given.
        owner (`str`): Whose coefficient it is, for messages.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a number is not finite, a group is unknown, or two groups share tensors.
    """
    if not isinstance(value, Mapping):
        _check_number(value, owner)
        return
    _check_groups(list(value), owner)
    for group, number in value.items():
        _check_number(number, f"{owner}, group '{group}',")


def level(value: Coefficient) -> float:
    """Return a coefficient as one number: the mean over the groups, if there are groups."""
    if isinstance(value, Mapping):
        return sum(value.values()) / len(value)
    return value


def coefficient_text(value: Coefficient) -> str:
    """Format a coefficient, or its groups, for display."""
    if isinstance(value, Mapping):
        return ", ".join(f"{group} {number:g}" for group, number in value.items())
    return f"{value:g}"


def _check_groups(groups: list[object], owner: str) -> None:
    """Check that groups are kinds of tensors or runs of layers, not both, and that no tensor is in two of them."""
    named = shown_list(groups)
    kinds = []
    runs: list[range] = []
    is_known = bool(groups)
    for group in groups:
        run = layer_run(str(group))
        if group == REST:
            continue
        if run is not None:
            runs.append(run)
        elif group in KINDS:
            kinds.append(group)
        else:
            is_known = False
    if not is_known:
        known = f"{', '.join(KINDS)}, or runs such as 'layers 0-7'; and {REST}"
        raise ConfigError(f"{owner} has coefficients for the groups {named}; there are {known}.")
    is_mixed = bool(kinds) and bool(runs)
    has_empty_run = not all(runs)
    # Runs are compared by their ends: a list of the layers of 'layers 0-999999999' would take all memory.
    runs.sort(key=lambda run: run.start)
    has_overlap = any(second.start < first.stop for first, second in pairwise(runs))
    if is_mixed or has_overlap or has_empty_run:
        raise ConfigError(
            f"{owner} has coefficients for the groups {named}, which share tensors or have none. Name kinds, or "
            "runs, each once."
        )


def _check_number(value: object, owner: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number and hasattr(value, "item"):  # a number of numpy, or a tensor
        kind = type(value)
        raise ConfigError(
            f"{owner} has coefficient {shown(value)}, a {kind.__module__}.{kind.__qualname__}; give a Python number, such "
            "as its .item()."
        )
    if not is_number or not is_finite(value):
        raise ConfigError(f"{owner} has coefficient {shown(value)}; it must be a finite number.")


def is_finite(value: Any) -> bool:
    """Check whether a number is finite as a float."""
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that is larger than every float
        return False
