"""One vector of a recipe: the record, its name, and how a recipe's JSON refers to the place where it is.

A recipe on this machine may refer to folders, relative to its own folder, so that both can be moved together. A
recipe from the Hub may refer to repositories only, because a path of another machine means nothing here.
"""

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dem_hub.checkpoints.tokenizer import Token
from dem_hub.errors import ConfigError
from dem_hub.files.foreign_names import check_inside, check_name
from dem_hub.files.plain_numbers import plain
from dem_hub.files.shown import shown
from dem_hub.files.strict_json import as_mapping
from dem_hub.hub.references import COMMIT, REPO_ID, HubId, VectorSource
from dem_hub.merging.coefficients import Coefficient, check_coefficient
from dem_hub.vectors.config import read_tokens

# The `repo_id` of a vector that is kept in the recipe's own folder or repository.
HERE = "."


@dataclass(frozen=True)
class VectorRecord:
    """One vector of a recipe: where it is, which contents it must have, and its coefficient.

    Args:
        repo_id (`str`): Hub id or folder.
        coefficient (`float` or `Mapping[str, float]`): One number, or one for each group of the vector's tensors.
        commit (`str`, *optional*): Commit on the Hub, 40 hex digits.
        subfolder (`str`, *optional*, defaults to `""`): Subfolder of the repository or folder.
        sha256 (`str`, *optional*): Hash of the contents, 64 hex digits; see [`DistributionVector.sha256`].
        codec (`str`, *optional*): Name of the codec, for display.
        tokens (`Mapping[str, Token]`, *optional*): The tokens that the vector's fine-tune has and the base lacks.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the coefficient is not finite, the commit is short or the subfolder leaves
            the repository.
    """

    repo_id: str
    coefficient: Coefficient
    commit: str | None = None
    subfolder: str = ""
    sha256: str | None = None
    codec: str | None = None
    tokens: Mapping[str, Token] | None = None

    def __post_init__(self) -> None:
        """Check the fields."""
        check_inside(self.subfolder, f"subfolder of vector '{self.repo_id}'")
        # A mapping is copied: the caller may change it later, and a record must not change.
        object.__setattr__(self, "coefficient", plain(self.coefficient))
        check_coefficient(self.coefficient, f"Vector '{self.repo_id}'")
        if self.commit is not None and not COMMIT.fullmatch(self.commit):
            raise ConfigError(
                f"Vector '{self.repo_id}' has commit '{self.commit}', which is not 40 hex digits. Pin the full commit."
            )
        if self.commit is not None:
            object.__setattr__(self, "repo_id", HubId(self.repo_id))  # no folder has a commit

    @property
    def source(self) -> VectorSource:
        """The vector at its commit, as a source that can be opened."""
        return VectorSource(self.repo_id, self.commit, self.subfolder)

    @property
    def name(self) -> str:
        """The name by which a recipe's coefficients are given: `repo_id`, or `repo_id//subfolder`."""
        return str(VectorSource(self.repo_id, None, self.subfolder))


def canonical_name(name: str) -> str:
    """Return one spelling of a vector's name: the absolute path of a folder, and any other name as it is."""
    path = Path(name)
    if path.is_dir():
        return str(path.resolve())
    return name


def named_twice(names: Iterable[str]) -> list[str]:
    """Return the vectors that are named more than once, in whatever spelling, each in the one of [`canonical_name`]."""
    counts = Counter(map(canonical_name, names))
    return sorted(name for name, count in counts.items() if count > 1)


def write_reference(entry: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Return the JSON entry of a base or a vector. A folder of this machine has the key `path` in place of `repo_id`.

    A vector without new tokens has no key for them. What is in the recipe's own folder has `repo_id` "." there.

    Args:
        entry (`Mapping[str, Any]`): The fields of the record.
        folder (`Path`, *optional*): Folder of the recipe. Paths are written relative to it; without it they are
            absolute.
    """
    if not entry.get("tokens", True):
        entry = {key: value for key, value in entry.items() if key != "tokens"}
    name = entry["repo_id"]
    if name in (None, HERE) or isinstance(name, HubId) or not Path(name).is_dir():
        return dict(entry)
    path = str(Path(name).resolve())
    if folder is not None:
        path = os.path.relpath(path, folder.resolve())
    if path == HERE:
        return {**entry, "repo_id": HERE}
    others = {key: value for key, value in entry.items() if key != "repo_id"}
    return {**others, "path": path}


def read_reference(data: object, where: str, home: Path | VectorSource | None) -> dict[str, Any]:
    """Return the fields of the record of a base or a vector, from its JSON entry.

    Args:
        data (`object`): The entry.
        where (`str`): Name of the recipe's file, for messages.
        home (`Path` or [`VectorSource`], *optional*): Folder or repository that the recipe was read from. Only a
            recipe that was read from a folder may refer to folders.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the entry is not a JSON object, or a recipe from the Hub refers to a
            folder.
    """
    entry = dict(as_mapping(data, f"{where}: base or vector"))
    for name in ("path", "repo_id", "subfolder"):
        if name in entry and not isinstance(entry[name], str | None):
            raise ConfigError(
                f"{where} has the {name} {shown(entry[name])} of a base or a vector, which is not a text."
            )
        check_name(entry.get(name) or "", f"{name} of a base or a vector in {where}")
    if "tokens" in entry:
        entry["tokens"] = read_tokens(entry["tokens"], f"{where}: tokens of a vector")
    reference = entry.get("path", entry.get("repo_id"))
    if reference == HERE and home is not None:
        return _read_own_vector(entry, where, home)
    if not isinstance(home, Path):
        if "path" in entry or not REPO_ID.fullmatch(str(reference)):
            raise ConfigError(
                f"{where} comes from the Hub and names the local path '{reference}'. A shared recipe names Hub ids "
                "only."
            )
        return {**entry, "repo_id": HubId(reference)}
    if "path" in entry:
        entry["repo_id"] = str((home / (entry.pop("path") or "")).resolve())
    return entry


def _read_own_vector(entry: Mapping[str, Any], where: str, home: Path | VectorSource) -> dict[str, Any]:
    """Return the fields of a vector that is kept beside its recipe."""
    subfolder = entry.get("subfolder", "")
    check_inside(subfolder, f"subfolder of a vector in {where}")
    if isinstance(home, Path):
        others = {key: value for key, value in entry.items() if key != "path"}  # which says the same
        return {**others, "repo_id": str(home.resolve())}
    inside = "/".join(part for part in (home.subfolder, subfolder) if part)
    return {**entry, "repo_id": home.repo_id, "commit": home.revision, "subfolder": inside}
