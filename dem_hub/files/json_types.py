"""Types of JSON data, as annotations write them: whether a value is of one, and what a message calls it."""

from collections.abc import Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin


def fits(kind: Any, value: object) -> bool:
    """Check whether JSON data is of a type, as an annotation writes it.

    A whole number is a float too, and a list is a tuple: JSON does not tell them apart. True and False are no numbers.
    A type that JSON does not have, such as another record, is compared by `isinstance`.

    Example:

    ```python
    >>> from collections.abc import Mapping
    >>> from dem_hub.files.json_types import fits
    >>> fits(float | None, 1), fits(float | None, "1"), fits(Mapping[str, int], {"a": True}), fits(tuple[int, ...], [1])
    (True, False, False, True)

    ```
    """
    if kind is Any:
        return True
    origin = get_origin(kind)
    members = get_args(kind)
    if origin in (Union, UnionType):
        return any(fits(member, value) for member in members)
    if origin is not None:
        return _fits_members(origin, members, value)
    if kind in (None, NoneType):
        return value is None
    if kind is float:
        return type(value) in (int, float)
    if kind in (int, bool):
        return type(value) is kind
    return isinstance(value, kind)


def _fits_members(origin: Any, members: tuple[Any, ...], value: object) -> bool:
    """Check whether a value is of a type that has members: a literal, a mapping, a list or a tuple."""
    if origin is Literal:
        return any(type(value) is type(member) and value == member for member in members)
    if issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits(members[0], key) and fits(members[1], entry) for key, entry in value.items()
        )
    if not issubclass(origin, Sequence) or not isinstance(value, (list, tuple)):
        return False
    if origin is not tuple or members[-1] is Ellipsis:
        members = members[:1] * len(value)
    return len(members) == len(value) and all(map(fits, members, value))


def kind_text(kind: Any) -> str:
    """Return the words of a message for a type of an annotation.

    Example:

    ```python
    >>> from collections.abc import Mapping
    >>> from dem_hub.files.json_types import kind_text
    >>> kind_text(int), kind_text(str | None), kind_text(Mapping[str, float])
    ('a whole number', 'a text or null', 'an object of numbers')

    ```
    """
    origin = get_origin(kind)
    members = get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(kind_text(member) for member in members)
    if origin is Literal:
        return f"one of {', '.join(map(repr, members))}"
    if origin is not None:
        several = "an object" if issubclass(origin, Mapping) else "a list"
        entry = members[1] if issubclass(origin, Mapping) else members[0]
        return several if entry is Any else f"{several} of {kind_text(entry).partition(' ')[2]}s"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
    return names.get(kind, f"a {getattr(kind, '__name__', kind)}")
