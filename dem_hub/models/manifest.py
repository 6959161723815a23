"""`dem_files.json`: what a merge wrote into a folder, so that nothing else is pushed or replaced.

A merged model's folder is the user's own: keys, notes and code may lie in it. The manifest names the files that the
merge made. It may come from somebody else, with the folder, so a name in it counts only if a merge makes files of
that name. Files of other names, which a base on the Hub may have, count only while their contents are those that the
merge wrote: nobody can name the hash of a secret.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

from dem_hub.errors import CheckpointError, ConfigError, refuse
from dem_hub.files.foreign_names import check_inside
from dem_hub.files.links import check_link, check_paths
from dem_hub.files.names import MERGED_FILES, MODEL_CODE, PROVENANCE_CONFIG, RECIPE_CONFIG
from dem_hub.files.side_files import is_module_file, is_side_file, side_files_of
from dem_hub.files.strict_json import FORMAT_VERSION, check_version, dump_json, read_json, read_record
from dem_hub.hub.hashes import digest, short_hash

_WEIGHTS = re.compile(r"model(-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_code(name: str) -> bool:
    """Check whether a file of a model's folder is remote code."""
    return fnmatch(name, MODEL_CODE)


@dataclass(frozen=True)
class Manifest:
    """The files of a merged model by name, and the purpose of the merge.

    `files` has the size in bytes of each file of weights, and `None` for each other file, which a person may edit.
    `weights` has the sha256 of each file of weights; it is empty in a manifest of an earlier version.
    `others` has the sha256 of each file whose name is none that a model's files have, such as a license.
    `purpose` is that of [`PlannedModel`]: two merges with the same purpose write the same bytes.
    """

    purpose: str
    files: Mapping[str, int | None]
    others: Mapping[str, str] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Refuse a name that no merge writes, and a size that no file has."""
        are_objects = all(isinstance(value, Mapping) for value in (self.files, self.others, self.weights))
        if not isinstance(self.purpose, str) or not are_objects:
            raise ConfigError("purpose must be a text, and files, others and weights JSON objects.")
        for name, size in self.files.items():
            if not _is_ours(name):
                raise ConfigError(f"'{name}' is no file that a merge writes.")
            is_size = type(size) is int and size >= 0
            if not is_size and size is not None:
                raise ConfigError(f"'{name}' has the size {size!r}, which must be a number of bytes, or null.")
        for name, sha256 in (*self.others.items(), *self.weights.items()):
            check_inside(name, "file of a merge")
            if not _SHA256.fullmatch(str(sha256)):
                raise ConfigError(f"'{name}' has the sha256 {sha256!r}, which must be 64 hex digits.")

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """Return the manifest of a folder; `None` if it has none.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If it is damaged, or names a file that no merge writes.
        """
        path = folder / MERGED_FILES
        if not path.is_file():
            return None
        check_link(path)
        data = read_json(path)
        check_version(data, str(path))
        return read_record(cls, data, str(path))

    @property
    def text(self) -> str:
        """The text of the file."""
        data = {"format_version": self.format_version, "purpose": self.purpose, "files": dict(self.files)}
        return dump_json({**data, "others": dict(self.others), "weights": dict(self.weights)})

    @classmethod
    def of(cls, folder: Path, purpose: str, weights: Mapping[str, str]) -> "Manifest":
        """Return the manifest of a folder that a merge has just written, with the sha256 of its files of weights."""
        files: dict[str, int | None] = {}
        others = {}
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if _is_ours(name):
                files[name] = path.stat().st_size if _WEIGHTS.fullmatch(name) else None
            elif path.is_file() and name != MERGED_FILES and not name.startswith("."):  # the merge's journal is hidden
                others[name] = digest(path)
        return cls(purpose, files, others, weights)

    def is_complete(self, folder: Path) -> bool:
        """Check whether a folder has every file of the manifest, and the weights that were written."""
        return not self.missing(folder) and not self.changed(folder)

    def missing(self, folder: Path) -> list[str]:
        """Return a line for each file that a folder lacks."""
        return [f"'{name}' is missing" for name in sorted(self.files) if not (folder / name).is_file()]

    def changed(self, folder: Path) -> list[str]:
        """Return a line for each file of a folder that is not the one that was written."""
        faults = []
        for name, expected in sorted(self.files.items()):
            path = folder / name
            if expected is None or not path.is_file():
                continue
            if path.stat().st_size != expected:
                faults.append(f"'{name}' has {path.stat().st_size} bytes, and was written with {expected}")
            elif name in self.weights and digest(path) != self.weights[name]:
                actual, written = short_hash(digest(path)), short_hash(self.weights[name])
                faults.append(f"'{name}' has sha256 {actual}, and was written with {written}")
        changed = sorted(set(self.others) - self._others_there(folder))
        faults += [f"'{name}' is missing, or was changed" for name in changed]
        return faults

    def names_there(self, folder: Path) -> set[str]:
        """Return the names of the files in a folder that are the merge's own, and its manifest's."""
        there = {name for name in (*self.files, MERGED_FILES) if (folder / name).is_file()}
        return there | self._others_there(folder)

    def _others_there(self, folder: Path) -> set[str]:
        return {
            name
            for name, sha256 in self.others.items()
            if (folder / name).is_file() and digest(folder / name) == sha256
        }


def owned_files(folder: Path) -> set[str]:
    """Return the names of the files that an earlier merge wrote into a folder, as far as they are still there.

    A folder without a manifest was written by another version, or was cloned. Then the files count that have the
    names of a model, and no code does.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the manifest is damaged.
    """
    if not folder.is_dir():
        return set()
    manifest = Manifest.read(folder)
    if manifest is not None:
        return manifest.names_there(folder)
    there = {path.name for path in folder.iterdir() if path.is_file()} | set(side_files_of(folder))
    return {name for name in there if _is_ours(name) and not is_code(name)}


def check_strange_weights(folder: Path) -> None:
    """Refuse a merged model's folder with weights that no merge wrote, which could load in place of the model.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If there are any. All of them are listed.
    """
    if not (folder / MERGED_FILES).is_file():
        return
    ours = owned_files(folder)
    strange = [
        path.name for path in sorted(folder.iterdir()) if _WEIGHTS.fullmatch(path.name) and path.name not in ours
    ]
    if strange:
        refuse(
            ConfigError,
            f"'{folder}' has weights that no merge wrote, and that could load in place of the merged model.",
            [f"'{name}' is not named in {MERGED_FILES}" for name in strange],
            "Move them away, or choose another folder.",
        )


def merged_files(folder: Path, *, include_code: bool = False) -> dict[str, Path]:
    """Return the files of a merged model's folder that belong to the model, by name.

    Args:
        folder (`Path`): The folder.
        include_code (`bool`, *optional*, defaults to `False`): Also the base's own code, as far as the merge wrote it.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If one of the files is a link that leads out of the folder.
        [`~dem_hub.errors.CheckpointError`]: If files that the merge wrote are missing, or weights were changed.
    """
    manifest = Manifest.read(folder)
    faults = [] if manifest is None else sorted([*manifest.missing(folder), *manifest.changed(folder)])
    if faults:
        refuse(CheckpointError, f"The merged model '{folder}' is not whole.", faults, "Merge it again.")
    names = sorted(owned_files(folder) - {MERGED_FILES})
    check_paths([folder / name for name in names], folder)
    return {name: folder / name for name in names if include_code or not is_code(name)}


def _is_ours(name: str) -> bool:
    is_plain = "/" not in name and "\\" not in name and not name.startswith(".")
    if name in (PROVENANCE_CONFIG, RECIPE_CONFIG) or _WEIGHTS.fullmatch(name):
        return True
    return is_side_file(name) or is_module_file(name) or (is_plain and is_code(name))
