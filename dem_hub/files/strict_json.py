"""Small frozen records that the configs are made of, and the strict reading of JSON into them.

A record refuses an unknown key of its own format version and any newer version, where most of the field drops what it does not
know: for weights a dropped key is a silently different number.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from dem_hub.errors import ConfigError

FORMAT_VERSION = 1

_Record = TypeVar("_Record")


def check_inside(name: str, what: str) -> None:
    """Refuse a file name that leaves the folder it belongs to.

    Raises:
        `ConfigError`: the name is absolute, has `..` in it, or a backslash.
    """
    if not isinstance(name, str):
        raise ConfigError(f"The {what} is {name!r}, which is no name.")
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0]:
        raise ConfigError(
            f"The {what} is '{name}'; names must be relative and may not contain '..'. Do not use this repository."
        )


def check_version(data: Mapping[str, Any], where: str) -> None:
    """Refuse a format version that is newer than this library, or none.

    Raises:
        `ConfigError`: as said.
    """
    version = data.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise ConfigError(f"{where} has format_version {version!r}; this version reads 1 to {FORMAT_VERSION}.")
    if version > FORMAT_VERSION:
        raise ConfigError(
            f"{where} has format_version {version}, and this dem_hub reads up to {FORMAT_VERSION}. Upgrade: pip install --upgrade dem-hub"
        )


def read_record(record: type[_Record], data: object, where: str) -> _Record:
    """Make a frozen record from JSON data, refusing keys that it does not have and keys that it lacks."""
    values = as_mapping(data, where)
    known = {item.name: item for item in fields(record)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - set(known))
    if unknown:
        raise ConfigError(
            f"{where} has unknown key{'s' if len(unknown) > 1 else ''} {', '.join(map(repr, unknown))}; format version "
            f"{FORMAT_VERSION} has {', '.join(sorted(known))}. A key that is dropped would be a silently different model."
        )
    try:
        return record(**values)
    except TypeError as error:
        raise ConfigError(f"{where} is incomplete: {str(error).split('__init__() ')[-1]}.") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """The JSON object of a file's text."""
    try:
        return dict(as_mapping(json.loads(text), where))
    except (ValueError, RecursionError) as error:  # not JSON, or not UTF-8
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{where} is not JSON ({error}). Fetch it again.") from error


def dump_json(data: Mapping[str, Any]) -> str:
    """Return the text of a JSON file: sorted keys, two spaces of indentation and a final newline.

    The same data is always the same bytes, so that the hash of a file, or a diff on the Hub, shows a change of the data only.

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
    return json.dumps(data, indent=2, sort_keys=True) + "\n"


def as_mapping(data: object, where: str) -> dict[str, Any]:
    """The data, once it is known to be a JSON object."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is {type(data).__name__}, not a JSON object.")
    return data
