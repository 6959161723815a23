"""The values of mergekit's parameters, each for one tensor.

A parameter is a scalar, a list of scalars that is spread over the layers, or a list of these with filters, of which the
first one counts that is in the tensor's name. The same parameter may stand at the model, at the slice and at the whole
config; the nearest one that says something about the tensor counts.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from dem_hub.checkpoints.tensor_groups import layer_name, layer_number
from dem_hub.errors import ConfigError
from dem_hub.files.shown import shown
from dem_hub.merging.coefficients import is_finite

# Parameters by name, as they stand in a YAML.
Parameters = Mapping[str, Any]

_Value = TypeVar("_Value", bound=float)

_SCALARS = (bool, int, float, str)


@dataclass(frozen=True)
class Place:
    """A tensor's name, and how far into the layers it is: 0 in the first one and outside the layers, 1 in the last."""

    key: str
    depth: float = 0.0


def places_of(keys: Iterable[str]) -> list[Place]:
    """Return the place of each tensor. Each stack of layers has a depth of its own."""
    keys = list(keys)
    last: dict[str, int] = {}
    for key in keys:
        number = layer_number(key)
        if number is not None:
            last[_stack(key)] = max(number, last.get(_stack(key), 0))
    places = []
    for key in keys:
        number = layer_number(key)
        if number is None:
            places.append(Place(key))
        else:
            # mergekit takes the end of the list for the only layer of a model.
            count = last[_stack(key)]
            places.append(Place(key, number / count if count else 1.0))
    return places


def find_number(name: str, scopes: Sequence[Parameters], place: Place, default: float | None = None) -> float:
    """Return a parameter that is a number, for one tensor.

    Args:
        name (`str`): The parameter's name.
        scopes (`Sequence[Mapping]`): Where it may stand, the nearest first.
        place ([`Place`]): The tensor.
        default (`float`, *optional*): The value if it stands nowhere.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it stands nowhere and has no default, or is no number.
    """
    return _find(name, scopes, place, default, _read_number)


def find_switch(name: str, scopes: Sequence[Parameters], place: Place, *, default: bool) -> bool:
    """Return a parameter that is true or false, for one tensor; see [`find_number`]."""
    return _find(name, scopes, place, default, _read_switch)


def check_form(setting: object, where: str) -> None:
    """Refuse a parameter that is no scalar, no list of scalars, and no list of values with filters."""
    if isinstance(setting, _SCALARS):
        return
    if isinstance(setting, Mapping):
        if set(setting) <= {"value", "filter"} and isinstance(setting.get("filter"), str | None):
            values = setting.get("value")
            if isinstance(values, _SCALARS) or _is_gradient(values):
                return
    elif _is_gradient(setting):
        return
    elif isinstance(setting, list) and all(isinstance(entry, Mapping) for entry in setting):
        for number, entry in enumerate(setting):
            check_form(entry, f"{where}[{number}]")
        return
    raise ConfigError(
        f"{where} is {shown(setting)}; it must be a number, a list of numbers, or a list of entries with 'filter' and "
        "'value'."
    )


def _find(
    name: str,
    scopes: Sequence[Parameters],
    place: Place,
    default: _Value | None,
    read: Callable[[object, str], _Value],
) -> _Value:
    for scope in scopes:
        if name in scope:
            value = _evaluate(scope[name], name, place, read)
            if value is not None:
                return value
    if default is None:
        raise ConfigError(
            f"The parameter '{name}' has no value for the tensor '{place.key}'. Give it one at the model, or one "
            "without a filter."
        )
    return default


def _evaluate(setting: Any, name: str, place: Place, read: Callable[[object, str], _Value]) -> _Value | None:
    if isinstance(setting, _SCALARS):
        return read(setting, name)
    if isinstance(setting, Mapping):
        setting = [setting]
    if _is_gradient(setting):
        return _spread([read(entry, name) for entry in setting], place.depth, read, name)
    for entry in setting:
        wanted = entry.get("filter")
        if wanted in (None, "*") or wanted in place.key:
            return _evaluate(entry["value"], name, place, read)
    return None


def _spread(values: Sequence[_Value], depth: float, read: Callable[[object, str], _Value], name: str) -> _Value:
    """Return the value of a list at a depth: between two numbers, or one of two switches."""
    position = depth * (len(values) - 1)
    first = int(position)
    if isinstance(values[first], bool):
        return values[first]
    second = min(len(values) - 1, first + 1)
    share = position - first
    return read((1 - share) * values[first] + share * values[second], name)


def _is_gradient(setting: object) -> bool:
    return isinstance(setting, list) and bool(setting) and all(isinstance(entry, _SCALARS) for entry in setting)


def _read_number(value: object, name: str) -> float:
    number = None
    # YAML reads `1e-3`, without a dot, as a text.
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = None
    if number is None or not is_finite(number):
        raise ConfigError(f"The parameter '{name}' is {shown(value)}; it must be a finite number.")
    return number


def _read_switch(value: object, name: str) -> bool:
    if value not in (False, True):  # 0 and 1 are these, too
        raise ConfigError(f"The parameter '{name}' is {shown(value)}; it must be true or false.")
    return bool(value)


def _stack(key: str) -> str:
    """Return the name of the stack of layers that a tensor is in, such as `model.layers`."""
    return layer_name(key).rpartition(".")[0]
