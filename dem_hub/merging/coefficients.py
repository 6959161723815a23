"""Coefficients: one number a vector, or one for each group of its tensors."""

import math
from collections.abc import Mapping

from dem_hub.checkpoints.tensor_groups import KINDS, REST, layer_run
from dem_hub.errors import ConfigError
from dem_hub.hub.references import VectorSource

# A number, or one for each group of a vector's tensors.
Coefficient = float | Mapping[str, float]


# The coefficient of each vector, by id, folder or `VectorSource`, as callers may write it.
VectorCoefficients = (
    Mapping[str, float]
    | Mapping[VectorSource, float]
    | Mapping[str | VectorSource, float]
    | Mapping[str, Coefficient]
    | Mapping[VectorSource, Coefficient]
    | Mapping[str | VectorSource, Coefficient]
)


def check_coefficient(value: object, who: str) -> None:
    """Refuse what is no coefficient: neither a finite number, nor one for each of some groups that have no tensor in common.

    Raises:
        `ConfigError`: as said.
    """
    if not isinstance(value, Mapping):
        _check_number(value, who)
        return
    named = ", ".join(map(repr, value)) or "none"
    runs = {str(group): layer_run(str(group)) for group in value if group != REST}
    if not value or any(run is None and group not in KINDS for group, run in runs.items()):
        known = f"{', '.join(KINDS)}, or runs such as 'layers 0-7'; and {REST}"
        raise ConfigError(f"{who} has coefficients for the groups {named}; there are {known}.")
    layers = [layer for run in runs.values() for layer in run or ()]
    mixed = bool(layers) and None in runs.values()
    if mixed or len(set(layers)) < len(layers) or range(0) in runs.values():
        raise ConfigError(
            f"{who} has coefficients for the groups {named}, which share tensors or have none. Name kinds, or runs, each once."
        )
    for group, number in value.items():
        _check_number(number, f"{who}, group '{group}',")


def _check_number(value: object, who: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ConfigError(f"{who} has coefficient {value!r}; it must be a finite number.")


def level(value: Coefficient) -> float:
    """A coefficient as one number: the mean of those of groups."""
    return sum(value.values()) / len(value) if isinstance(value, Mapping) else value


def coefficient_text(value: Coefficient) -> str:
    """For people: a number, or the numbers with their groups."""
    return (
        ", ".join(f"{group} {number:g}" for group, number in value.items())
        if isinstance(value, Mapping)
        else f"{value:g}"
    )
