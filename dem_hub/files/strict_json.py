"""Strict reading of JSON into small frozen records, and writing in one form.

A record refuses a key that its format version does not have, a value of another type than its field, and a format
version that is newer. Most readers of configs ignore what they do not know; here an ignored key could mean a model with
other numbers, and no message. A file may come from anybody, so the size of the text, the depth of nesting, and the
range of each number are bounded before anything is made of them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, get_origin, get_type_hints

from dem_hub.errors import ConfigError
from dem_hub.files.json_types import fits, kind_text
from dem_hub.files.shown import SHOWN, shown

# The version of all formats that this library writes, and the newest that it reads.
FORMAT_VERSION = 1

# Bytes of a JSON file. safetensors has the same limit for its headers. The config of a vector takes 400 bytes for each
# tensor, so it may have 250,000 of them.
LARGEST_FILE = 100_000_000
# Objects and lists within each other. Our own formats nest 5 deep, and the deepest config of transformers 7.
_DEEPEST = 64
# Characters of one text. Chat templates in configs have some 10,000.
_LONGEST_TEXT = 1_000_000
# Whole numbers, inclusive: those of 64 bits, with or without a sign. Seeds and sizes are of these.
_SMALLEST = -(1 << 63)
_LARGEST = (1 << 64) - 1

_Record = TypeVar("_Record")


def check_whole(value: object, name: str) -> None:
    """Refuse what is no whole number of at most 64 bits, before it is in a file that nobody can read.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it is none.
    """
    if type(value) is not int or not _SMALLEST <= value <= _LARGEST:
        raise ConfigError(f"{name} is {shown(value)}; it must be a whole number of at most 64 bits.")


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
        raise ConfigError(f"the number {text[:SHOWN]} is out of range; whole numbers have 64 bits.")
    return int(text)


def _read_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ConfigError(f"the number {text[:SHOWN]} is out of range; the largest is 1.8e308.")
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
