"""Records of a search as JSON, and back, by the types of their fields.

A search result is made of many small frozen dataclasses. One pair of functions reads and writes all of them, so
that a field that is added to a dataclass is in the file at once, in both directions. Reading is strict: a key that
is unknown, missing or of another type is an error.
"""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor

from dem_hub.errors import ConfigError
from dem_hub.files.strict_json import as_mapping, read_record

_Record = TypeVar("_Record")


def to_json(value: Any) -> Any:
    """Return JSON data: dataclasses as objects with their fields in order, tuples and tensors as lists.

    Example:

    ```python
    >>> from dem_hub.search import Trial
    >>> from dem_hub.search.records import from_json, to_json
    >>> to_json(Trial((0.5,), {"maths": 2.0}, 2.0))
    {'coefficients': [0.5], 'losses': {'maths': 2.0}, 'value': 2.0}
    >>> from_json(Trial, {"coefficients": [0.5], "losses": {"maths": 2.0}, "value": 2.0}, "trials")
    Trial(coefficients=(0.5,), losses={'maths': 2.0}, value=2.0)

    ```
    """
    if is_dataclass(value):
        return {item.name: to_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: to_json(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(entry) for entry in value]
    return value


def from_json(record: type[_Record], data: object, where: str) -> _Record:
    """Return a frozen dataclass from what [`to_json`] made of it.

    Args:
        record (`type`): The dataclass. Its fields are numbers, strings, float64 tensors, dataclasses, `Any`, and tuples,
            mappings and unions of these.
        data (`object`): The JSON data.
        where (`str`): Name of the data in messages, such as the path of the file.

    Raises:
        `ConfigError`: A key is unknown, missing, or has a value of another type; the message says where.
    """
    values = as_mapping(data, where)
    for name, kind in get_type_hints(record).items():
        if name in values:
            values = {**values, name: _read(kind, values[name], f"{where}, {name}")}
    return read_record(record, values, where)


def _read(kind: Any, data: object, where: str) -> Any:
    """Return JSON data as a value of a type."""
    if is_dataclass(kind):
        return from_json(kind, data, where)  # type: ignore[arg-type]  # it is a class
    if kind is Any:
        return data
    if kind is Tensor:
        return _read_tensor(data, where)
    members = get_args(kind)
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        return _read_union(members, data, where)
    if origin is tuple:
        return _read_tuple(members, data, where)
    if origin is Mapping:
        return _read_mapping(members, data, where)
    if origin is Literal:
        return _read_literal(members, data, where)
    # JSON has one type of numbers: a float of no fraction may be written as 1.
    expected = (int, float) if kind is float else kind
    if not isinstance(data, expected) or isinstance(data, bool):
        raise ConfigError(f"{where} is {data!r}, not of type {kind.__name__}.")
    return data


def _read_union(members: tuple[Any, ...], data: object, where: str) -> Any:
    if data is None and NoneType in members:
        return None
    refusals = []
    for member in members:
        if member is NoneType:
            continue
        try:
            return _read(member, data, where)
        except ConfigError as error:
            refusals.append(error)
    raise refusals[-1]


def _read_tuple(members: tuple[Any, ...], data: object, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list):
        raise ConfigError(f"{where} is {data!r}, not a list.")
    if members[-1] is Ellipsis:
        members = (members[0],) * len(data)
    if len(members) != len(data):
        raise ConfigError(f"{where} has {len(data)} entries; it must have {len(members)}.")
    return tuple(_read(member, entry, where) for member, entry in zip(members, data, strict=True))


def _read_mapping(members: tuple[Any, ...], data: object, where: str) -> dict[str, Any]:
    return {key: _read(members[1], entry, f"{where}, {key}") for key, entry in as_mapping(data, where).items()}


def _read_literal(members: tuple[Any, ...], data: object, where: str) -> Any:
    if data not in members:
        raise ConfigError(f"{where} is {data!r}; it must be one of {', '.join(map(repr, members))}.")
    return data


def _read_tensor(data: object, where: str) -> Tensor:
    try:
        return torch.tensor(data, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{where} is no array of numbers ({error}).") from error
