"""Coefficients: one number for each vector, or one number for each group of a vector's tensors."""

import math
from collections.abc import Mapping

from dem_hub.checkpoints.tensor_groups import KINDS, REST, layer_run
from dem_hub.errors import ConfigError
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
    named = ", ".join(map(repr, groups)) or "none"
    kinds = []
    layers: list[int] = []
    has_empty_run = False
    is_known = bool(groups)
    for group in groups:
        run = layer_run(str(group))
        if group == REST:
            continue
        if run is not None:
            layers += run
            if not run:
                has_empty_run = True
        elif group in KINDS:
            kinds.append(group)
        else:
            is_known = False
    if not is_known:
        known = f"{', '.join(KINDS)}, or runs such as 'layers 0-7'; and {REST}"
        raise ConfigError(f"{owner} has coefficients for the groups {named}; there are {known}.")
    is_mixed = bool(kinds) and bool(layers)
    has_overlap = len(set(layers)) < len(layers)
    if is_mixed or has_overlap or has_empty_run:
        raise ConfigError(
            f"{owner} has coefficients for the groups {named}, which share tensors or have none. Name kinds, or "
            "runs, each once."
        )


def _check_number(value: object, owner: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{owner} has coefficient {value!r}; it must be a finite number.")
