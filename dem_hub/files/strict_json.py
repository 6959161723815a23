"""Strict reading of JSON into small frozen records, and writing in one form.

A record refuses a key that its format version does not have, and a format version that is newer. Most readers of
configs ignore what they do not know; here an ignored key could mean a model with other numbers, and no message.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

from dem_hub.errors import ConfigError

# The version of all formats that this library writes, and the newest that it reads.
FORMAT_VERSION = 1

_Record = TypeVar("_Record")


def check_inside(name: str, description: str) -> None:
    """Refuse a file name that leaves the folder it belongs to.

    Args:
        name (`str`): The name, from a file that may come from anybody.
        description (`str`): What the name is, for the message: "file of 'org/base'".

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the name is absolute, or has `..`, a backslash or a drive letter in it.
    """
    if not isinstance(name, str):
        raise ConfigError(f"The {description} is {name!r}, which is not a name.")
    parts = name.split("/")
    if name.startswith("/") or ".." in parts or "\\" in name or ":" in parts[0]:
        raise ConfigError(
            f"The {description} is '{name}'; names must be relative and may not contain '..'. Do not use this "
            "repository."
        )


def check_version(data: Mapping[str, Any], where: str) -> None:
    """Refuse a format version that is newer than this library, or missing.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If `data` has such a version.
    """
    version = data.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise ConfigError(f"{where} has format_version {version!r}; this version reads 1 to {FORMAT_VERSION}.")
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
            lacks one that it needs, or is refused by the record itself.
    """
    values = as_mapping(data, where)
    known = {item.name for item in fields(record)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - known)
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        raise ConfigError(
            f"{where} has unknown key{plural} {', '.join(map(repr, unknown))}; format version {FORMAT_VERSION} has "
            f"{', '.join(sorted(known))}. A key that is dropped would be a silently different model."
        )
    try:
        return record(**values)
    except TypeError as error:
        # Python's message names the missing arguments, after the name of the method.
        missing = str(error).split("__init__() ")[-1]
        raise ConfigError(f"{where} is incomplete: {missing}.") from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def parse_json(text: str | bytes, where: str) -> dict[str, Any]:
    """Return the JSON object in a file's text.

    Args:
        text (`str` or `bytes`): The text; bytes are UTF-8.
        where (`str`): The file, for messages.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the text is not JSON, or not an object.
    """
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, or nested too deeply
        raise ConfigError(f"{where} is not JSON ({error}). Fetch it again.") from error
    return as_mapping(data, where)


def dump_json(data: Mapping[str, Any]) -> str:
    """Return the text of a JSON file: sorted keys, two spaces of indentation and a final newline.

    The same data is always the same bytes, so that the hash of a file, or a diff on the Hub, shows a change of the
    data only.

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
    """Return the data unchanged, after a check that it is a JSON object.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it is not.
    """
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is {type(data).__name__}, not a JSON object.")
    return data
