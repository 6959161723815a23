"""Hashes of files: worked out, remembered, and compared with what a config or the Hub says.

The Hub's client checks the size of a download and nothing else. But it names each blob of its cache after the hash
that the Hub gave for it, so the bytes are compared with that name, at the cost of no request. The hash of a file in
the cache, or of any large file, is remembered; see [`dem_hub.hub.remembered`].
"""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from dem_hub.errors import CheckpointError, refuse
from dem_hub.files.foreign_names import check_inside
from dem_hub.hub.remembered import blob_of, remembered

# Hex digits that a message shows of a hash: 64 bits.
_SHORT = 16


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256_of_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_blob_of_file(path: Path) -> str:
    return _git_blob_of_bytes(path.read_bytes())


def _git_blob_of_bytes(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class HashKind:
    """A hash function for the contents of files.

    `suffix` ends the names of the files that remember these hashes. It is on users' disks, so it must not change.
    """

    suffix: str
    of_file: Callable[[Path], str]
    of_bytes: Callable[[bytes], str]


# The Hub identifies a large file (one in LFS or Xet) by its sha256, and a small one by the id of its blob in git.
SHA256 = HashKind("_sha256", _sha256_of_file, _sha256_of_bytes)
GIT_BLOB = HashKind("_git", _git_blob_of_file, _git_blob_of_bytes)


def digest(file: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file, 64 hex digits.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from dem_hub.hub.hashes import digest
    >>> path = Path(tempfile.mkdtemp()) / "empty"
    >>> path.touch()
    >>> digest(path)[:16]
    'e3b0c44298fc1c14'

    ```
    """
    return _hash_once(Path(file), SHA256)


def short_hash(digest: str | None) -> str:
    """Return the first 16 hex digits of a hash, for a message: enough to tell two files or two models apart.

    A hash that is not known (`None`, such as the fingerprint of an adapter's base) is `unknown`.
    """
    return "unknown" if digest is None else digest[:_SHORT]


def is_version(content: Path | str, hub_hash: str) -> bool:
    """Check whether a file, or a text, has the hash by which the Hub knows it (a sha256 or a git blob id)."""
    kind = _kind_of(hub_hash)
    if kind is None:
        return False
    if isinstance(content, Path):
        return _hash_once(content, kind) == hub_hash
    return kind.of_bytes(content.encode()) == hub_hash


def verify_files(folder: Path, files: Mapping[str, str], known: Mapping[str, str] = MappingProxyType({})) -> None:
    """Check the files of a folder against their recorded sha256.

    Args:
        folder (`Path`): The folder.
        files (`Mapping[str, str]`): The recorded sha256 of each file, by name.
        known (`Mapping[str, str]`, *optional*): The actual sha256 of files, by name, where that is known already.
            These files are not read, and need not be there: the Hub says the sha256 of a file that has not been
            downloaded.

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If files are missing or altered. All of them are listed, with both
            hashes.
    """
    faults = []
    for name, expected in sorted(files.items()):
        check_inside(name, f"file of '{folder}'")
        path = folder / name
        if name not in known and not path.is_file():
            faults.append(f"'{name}' is missing, recorded is {short_hash(expected)}")
            continue
        actual = known[name] if name in known else digest(path)
        if actual != expected:
            faults.append(f"'{name}' has sha256 {short_hash(actual)}, recorded is {short_hash(expected)}")
    if faults:
        refuse(
            CheckpointError,
            f"Files of '{folder}' are missing or were altered.",
            faults,
            "Nothing was loaded. Fetch them again.",
        )


def verify_downloads(repo_id: str, files: Iterable[Path]) -> None:
    """Check files of the Hub's cache against the hashes that the Hub gave for them.

    Damaged files are removed from the cache, so that the next try downloads them again.

    Args:
        repo_id (`str`): The repository, for the message.
        files (`Iterable[Path]`): Files of a snapshot. One that is not a link to a blob is skipped, as its hash on
            the Hub is not known.

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If files are not what the Hub has. All of them are listed, with both
            hashes.
    """
    faults = []
    damaged = []
    for path in files:
        blob = blob_of(path)
        kind = None if blob is None else _kind_of(blob.name)
        if blob is None or kind is None:
            continue
        actual = _hash_once(path, kind)
        if actual != blob.name:
            faults.append(f"'{path.name}' has hash {short_hash(actual)}, the Hub's has {short_hash(blob.name)}")
            damaged += [blob.resolve(), blob, path]
    if faults:
        remedy = _remove(damaged)
        refuse(CheckpointError, f"Files of '{repo_id}' were damaged during the download.", faults, remedy)


def _remove(damaged: Iterable[Path]) -> str:
    """Remove files from the cache, and return what the user can do now."""
    try:
        for path in damaged:
            path.unlink(missing_ok=True)
    except OSError as error:
        return (
            f"Nothing was loaded. They cannot be removed from the cache ({error}): remove them by hand, or "
            "name another cache_dir."
        )
    return "Nothing was loaded, and they were removed from the cache. Try again to download them again."


def _kind_of(name: str) -> HashKind | None:
    """Return the kind of a hash, which its length tells; `None` if the name is not a hash."""
    if re.fullmatch(r"[0-9a-f]{64}", name):
        return SHA256
    if re.fullmatch(r"[0-9a-f]{40}", name):
        return GIT_BLOB
    return None


def _hash_once(path: Path, kind: HashKind) -> str:
    """Return the hash of a file, from memory if the file has not changed since it was remembered."""
    return str(remembered(path, kind.suffix, kind.of_file))
