"""Small frozen records that the configs are made of, and the strict reading of JSON into them.

A record refuses an unknown key of its own format version and any newer version, where most of the field drops what it does not
know: for weights a dropped key is a silently different number.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from dem_hub.errors import ConfigError

FORMAT_VERSION = 1

COMMIT = re.compile(r"[0-9a-f]{40}")
REPO_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
_Record = TypeVar("_Record")


@dataclass(frozen=True)
class VectorSource:
    """Where a vector, a base or a recipe is: a Hub id or a folder, at one revision, in one subfolder.

    Example:

    ```python
    >>> from dem_hub.merging.config import VectorSource
    >>> str(VectorSource("me/vectors", revision="v2", subfolder="maths"))
    'me/vectors@v2//maths'
    >>> VectorSource.parse("me/vectors@v2//maths").subfolder
    'maths'

    ```
    """

    repo_id: str
    revision: str | None = None
    subfolder: str = ""

    def __post_init__(self) -> None:
        """Refuse subfolders that leave the repository."""
        check_inside(self.subfolder, f"subfolder of '{self.repo_id}'")

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{self.repo_id}{revision}" + (f"//{self.subfolder}" if self.subfolder else "")

    @classmethod
    def parse(cls, text: "str | os.PathLike[str] | VectorSource") -> "VectorSource":
        """Read `ID[@REVISION][//SUBFOLDER]`; an existing folder is taken as it is, whatever its name."""
        if isinstance(text, VectorSource):
            return text
        name = os.fspath(text)
        if Path(name).is_dir():
            return cls(name)
        name, _, subfolder = name.partition("//")
        name, _, revision = name.partition("@")
        return cls(name, revision or None, subfolder)

    @property
    def is_local(self) -> bool:
        """Whether this names a folder of this machine rather than a repository of the Hub."""
        return bool(self.repo_id) and Path(self.repo_id).is_dir()


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

# What a tensor is for; or which layers it is in, `layers 0-7`; or all that no other group of a coefficient has.
EMBEDDING, ATTENTION, MLP, OTHER, REST = "embedding", "attention", "mlp", "other", "rest"
KINDS = (EMBEDDING, ATTENTION, MLP, OTHER)
_LAYERS = re.compile(r"layers (\d+)-(\d+)")


def layer_run(group: str) -> range | None:
    """The layers of a group such as `layers 0-7`; `None` where it is no such group."""
    match = _LAYERS.fullmatch(group)
    return range(int(match[1]), int(match[2]) + 1) if match else None


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


@dataclass(frozen=True)
class BaseRecord:
    """Which base a vector was taken from, or a recipe is built on.

    `repo_id` is a Hub id, or the path of a folder (`None` where an adapter does not say); `commit` has 40 hex digits;
    `fingerprint` is that of [`dem_hub.checkpoints.fingerprint`].
    """

    repo_id: str | None
    commit: str | None = None
    subfolder: str = ""
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        """Refuse short commits and subfolders that leave the repository."""
        check_inside(self.subfolder, f"subfolder of base '{self.repo_id}'")
        if self.commit is not None and not COMMIT.fullmatch(self.commit):
            raise ConfigError(
                f"Base '{self.repo_id}' has commit '{self.commit}', which is not 40 hex digits. Pin the full commit."
            )

    def __str__(self) -> str:
        name = self.repo_id or "unknown base"
        return (
            name + (f"@{self.commit[:12]}" if self.commit else "") + (f"//{self.subfolder}" if self.subfolder else "")
        )

    @property
    def source(self) -> VectorSource:
        """The base as something that can be opened."""
        if self.repo_id is None:
            raise ConfigError("The base is not recorded here. Name it yourself.")
        return VectorSource(self.repo_id, self.commit, self.subfolder)


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


def as_mapping(data: object, where: str) -> dict[str, Any]:
    """The data, once it is known to be a JSON object."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where} is {type(data).__name__}, not a JSON object.")
    return data
