"""Strict reading of JSON into small frozen records, and writing in one form.

A record refuses a key that its format version does not have, a value of another type than its field, and a format
version that is newer. Most readers of configs ignore what they do not know; here an ignored key could mean a model with
other numbers, and no message. A file may come from anybody, so the size of the text, the depth of nesting, and the
range of each number are bounded before anything is made of them.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dem_hub.errors import ConfigError

# The version of all formats that this library writes, and the newest that it reads.
FORMAT_VERSION = 1

# Bytes of a JSON file. safetensors has the same limit for its headers. The config of a vector takes 400 bytes for each
# tensor, so it may have 250,000 of them.
LARGEST_FILE = 100_000_000
# Objects and lists within each other. Our own formats nest 5 deep, and the deepest config of transformers 7.
_DEEPEST = 64
# Characters of one text. Chat templates in configs have some 10,000.
_LONGEST_TEXT = 1_000_000
# Characters of a name of a file, a folder or a repository: what Linux allows for a path.
_LONGEST_NAME = 4096
# Whole numbers, inclusive: those of 64 bits, with or without a sign. Seeds and sizes are of these.
_SMALLEST = -(1 << 63)
_LARGEST = (1 << 64) - 1
# Characters of a message that show a value which was refused.
_SHOWN = 60
_SHOWN_ENTRIES = 10

_Record = TypeVar("_Record")


def check_inside(name: str, description: str) -> None:
    """Refuse a file name that leaves the folder it belongs to.

    Args:
        name (`str`): The name, from a file that may come from anybody.
        description (`str`): What the name is, for the message: "file of 'org/base'".

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the name is absolute, has `..`, a backslash, a drive letter or a control
            character in it, or is longer than any path.
    """
    if not isinstance(name, str):
        raise ConfigError(f"The {description} is {shown(name)}, which is not a name.")
    check_name(name, description)
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0]:
        raise ConfigError(
            f"The {description} is '{name}'; names must be relative and may not contain '..'. Do not use this "
            "repository."
        )


def check_name(name: str, description: str) -> None:
    """Refuse a name that no file, folder or repository can have.

    Args:
        name (`str`): The name, from a file that may come from anybody.
        description (`str`): What the name is, for the message.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it has a control character, which the system or a terminal would read in
            its own way, or is longer than any path.
    """
    if len(name) > _LONGEST_NAME:
        raise ConfigError(
            f"The {description} is {shown(name)}: it has {len(name)} characters, and {_LONGEST_NAME} are allowed."
        )
    if any(character < " " or character == "\x7f" for character in name):
        raise ConfigError(f"The {description} is {shown(name)}; names may not contain control characters.")


def shown(value: object) -> str:
    """Return a value that was refused as a message shows it: on one line, and no longer than 60 characters.

    Example:

    ```python
    >>> from dem_hub.files.strict_json import shown
    >>> shown("a\\nb"), len(shown(10**300))
    ("'a\\\\nb'", 20)

    ```
    """
    if isinstance(value, int) and abs(value) > _LARGEST:
        text = f"a number of {value.bit_length()} bits"
    else:
        text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def shown_list(values: Sequence[object]) -> str:
    """Return the first ten of some values that were refused, as a message shows them."""
    text = ", ".join(map(shown, values[:_SHOWN_ENTRIES])) or "none"
    others = len(values) - _SHOWN_ENTRIES
    return text if others <= 0 else f"{text} and {others} others"


def check_version(data: Mapping[str, Any], where: str) -> None:
    """Refuse a format version that is newer than this library, or missing.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If `data` has such a version.
    """
    version = data.get("format_version")
    # `type(...) is int`, since True is an int for isinstance.
    if type(version) is not int or version < 1:
        raise ConfigError(f"{where} has format_version {shown(version)}; this version reads 1 to {FORMAT_VERSION}.")
    if version > FORMAT_VERSION:
        raise ConfigError(
            f"{where} has format_version {version}, and this dem_hub reads up to {FORMAT_VERSION}. Upgrade: "
            "pip install --upgrade dem-hub"
        )


def read_record(record: type[_Record], data: object, where: str) -> _Record:
    """Make a frozen record from JSON data.

    Args:
        record (`type`): A frozen dataclass.
        data (`object`): The JSON data.
        where (`str`): Where it comes from, for messages.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the data is not an object, has a key that the record does not have,
            lacks one that it needs, has a value of another type than the field's, or is refused by the record itself.
    """
    values = as_mapping(data, where)
    known = {item.name for item in fields(record)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        raise ConfigError(
            f"{where} has unknown key{plural} {', '.join(map(shown, unknown))}; format version {FORMAT_VERSION} has "
            f"{', '.join(sorted(known))}. A key that is dropped would be a silently different model."
        )
    for name, kind in _kinds(record).items():  # type: ignore[arg-type]  # it is a class
        if name in values and not fits(kind, values[name]):
            if get_origin(kind) is Mapping:
                as_mapping(values[name], f"{where}: {name}")
            raise ConfigError(f"{where} has {name} {shown(values[name])}, which is not {kind_text(kind)}.")
    try:
        return record(**values)
    except TypeError as error:
        # Python's message names the missing arguments, after the name of the method.
        missing = str(error).split("__init__() ")[-1]
        raise ConfigError(f"{where} is incomplete: {missing}.") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


@cache
def _kinds(record: type) -> dict[str, Any]:
    # A record says itself which texts it takes, with what there is to choose from.
    hints = get_type_hints(record)
    return {name: str if get_origin(kind) is Literal else kind for name, kind in hints.items()}


def fits(kind: Any, value: object) -> bool:
    """Check whether JSON data is of a type, as an annotation writes it.

    A whole number is a float too, and a list is a tuple: JSON does not tell them apart. True and False are no numbers.
    A type that JSON does not have, such as another record, is compared by `isinstance`.

    Example:

    ```python
    >>> from collections.abc import Mapping
    >>> from dem_hub.files.strict_json import fits
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
    >>> from dem_hub.files.strict_json import kind_text
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


def read_json(path: Path, *, foreign: bool = False, non_finite: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file; see [`parse_json`].

    Args:
        path (`Path`): The file. A file of more than 100 MB is not read.
        foreign, non_finite (`bool`): As in [`parse_json`].

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the file is too large, or its text is refused.
        `OSError`: If the file cannot be read.
    """
    with path.open("rb") as stream:
        text = stream.read(LARGEST_FILE + 1)
    return parse_json(text, str(path), foreign=foreign, non_finite=non_finite)


def parse_json(text: str | bytes, where: str, *, foreign: bool = False, non_finite: bool = False) -> dict[str, Any]:
    """Return the JSON object in a file's text.

    Args:
        text (`str` or `bytes`): The text; bytes are UTF-8.
        where (`str`): The file, for messages.
        foreign (`bool`): The file is in the format of another library, such as the `config.json` of a model. Then a key
            may occur twice, numbers may be of any size, and NaN and Infinity are allowed, as in that library.
        non_finite (`bool`): NaN and Infinity are allowed.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the text is not JSON, or not an object; if it is larger than 100 MB, nested
            more than 64 deep, or has a text of more than a million characters or one that is not Unicode; or if a
            number is out of range or a key occurs twice.
    """
    if len(text) > LARGEST_FILE:
        raise ConfigError(f"{where} is larger than {LARGEST_FILE:,} bytes, which no config is. Do not use it.")
    hooks: dict[str, Any] = {}
    if not foreign:
        hooks = {"parse_int": _read_int, "object_pairs_hook": _read_object}
    if not foreign and not non_finite:
        hooks |= {"parse_float": _read_float, "parse_constant": _refuse_constant}
    try:
        data = json.loads(text, **hooks)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested too deeply
        raise ConfigError(f"{where} is not JSON ({error}). Fetch it again.") from error
    _check_extent(data, where)
    return as_mapping(data, where)


def _read_int(text: str) -> int:
    # 20 digits and a sign are the most that 64 bits take.
    if len(text) > 21 or not _SMALLEST <= int(text) <= _LARGEST:
        raise ConfigError(f"the number {text[:_SHOWN]} is out of range; whole numbers have 64 bits.")
    return int(text)


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ConfigError(f"the number {text[:_SHOWN]} is out of range; the largest is 1.8e308.")
    return value


def _refuse_constant(text: str) -> float:
    raise ConfigError(f"{text} is not a number of JSON.")


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConfigError(f"the key {shown(twice)} occurs twice in one object. Which of the two counts is not clear.")
    return values


def _check_extent(data: object, where: str) -> None:
    """Refuse data that is nested too deeply, and texts that are too long or not Unicode."""
    level: list[object] = [data]
    for _ in range(_DEEPEST + 1):
        deeper: list[object] = []
        for value in level:
            if isinstance(value, dict):
                for key in value:
                    check_text(key, where)
                deeper += value.values()
            elif isinstance(value, list):
                deeper += value
            elif isinstance(value, str):
                check_text(value, where)
        if not deeper:
            return
        level = deeper
    raise ConfigError(f"{where} is nested more than {_DEEPEST} deep, which no config is. Do not use it.")


def check_text(text: str, where: str) -> None:
    """Refuse a text that is too long, or not Unicode.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it has more than a million characters, or half a character.
    """
    if len(text) > _LONGEST_TEXT:
        raise ConfigError(
            f"{where} has a text of {len(text)} characters, {shown(text)}, and {_LONGEST_TEXT:,} are allowed."
        )
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise ConfigError(f"{where} has the text {shown(text)}, which is not Unicode (it has half a character).")


def dump_json(data: Mapping[str, Any], *, foreign: bool = False) -> str:
    """Return the text of a JSON file: sorted keys, two spaces of indentation and a final newline.

    The same data is always the same bytes, so that the hash of a file, or a diff on the Hub, shows a change of the
    data only.

    Args:
        data (`Mapping[str, Any]`): The data.
        foreign (`bool`, *optional*, defaults to `False`): It may have texts of others. Then `<` and DEL are written as
            escapes of JSON, as all other control characters are, so that nothing in the file looks like HTML.

    Example:

    ```python
    >>> from dem_hub.files.strict_json import dump_json
    >>> print(dump_json({"b": 1, "a": 2}), end="")
    {
      "a": 2,
      "b": 1
    }

    ```
    """
    text = json.dumps(data, indent=2, sort_keys=True) + "\n"
    if foreign:
        text = text.replace("<", "\\u003c").replace("\x7f", "\\u007f")
    return text


def as_mapping(data: object, where: str) -> dict[str, Any]:
    """Return the data unchanged, after a check that it is a JSON object.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it is not.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is {type(data).__name__}, not a JSON object.")
    return data
