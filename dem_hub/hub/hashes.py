"""Hashes of files: worked out, remembered, and compared with what a config or the Hub says.

The Hub's client checks the size of a download and nothing else. But it names each blob of its cache after the hash
that the Hub gave for it, so the bytes are compared with that name, at the cost of no request. The hash of a file in
the cache, or of any large file, is remembered with the file's size, times and inode, as git does, and worked out
again only when one of these changes. (The time of the last change of content can be set by anybody; that of the last
change of the inode is the kernel's.) The memory lies in the cache next to the blobs, or under `HF_HOME` for files
that are elsewhere. Within [`hashing_again`] nothing that is remembered counts.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import get_args

from dem_hub.defaults import Verify
from dem_hub.errors import CheckpointError, ConfigError, refuse
from dem_hub.files.atomic import write_text
from dem_hub.files.foreign_names import check_inside
from dem_hub.files.states import FileState

# The folder of remembered hashes, in a repository's folder of the Hub's cache.
_MEMORY = ".dem_hub"
# Bytes from which the hash of a file outside the cache is remembered; smaller files are hashed quickly. Chosen by
# hand, not measured.
_LARGE = 1 << 24
# Seconds since the last change. A file that was written a moment ago may be written again within the same tick of
# the file system's clock, and its time would not show it. The coarsest clock in use is that of FAT, with 2 seconds.
_SETTLED = 2.0
# Hex digits that a message shows of a hash: 64 bits.
_SHORT = 16

# Whether remembered hashes count for nothing, in this thread.
_AGAIN: ContextVar[bool] = ContextVar("dem_hub_hashing_again", default=False)


@contextmanager
def hashing_again(verify: Verify) -> Iterator[None]:
    """Let all files be hashed again within a block, if `verify` is `"full"`.

    A disk that loses bits, or a program that writes into a file behind the kernel's back, changes neither size nor
    times nor inode, so a remembered hash does not show it.

    Args:
        verify (`str`): `"full"`, or `"quick"`: a hash that is remembered counts as long as the file's size, times and
            inode are the same.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it is neither.
    """
    if verify not in get_args(Verify):
        raise ConfigError(f"verify is {verify!r}; it must be one of {', '.join(get_args(Verify))}.")
    if verify == "quick":
        yield
        return
    token = _AGAIN.set(True)
    try:
        yield
    finally:
        _AGAIN.reset(token)


def is_hashing_again() -> bool:
    """Check whether this is within a block of [`hashing_again`] that hashes all files."""
    return _AGAIN.get()


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
        blob = _blob_of(path)
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


def _blob_of(path: Path) -> Path | None:
    """Return the blob that a file of the Hub's cache links to; `None` for any other file."""
    if not path.is_symlink():
        return None
    blob = Path(os.path.normpath(path.parent / path.readlink()))
    return blob if blob.parent.name == "blobs" else None


def remember_blob(blob: Path, state: FileState, sha256: str) -> None:
    """Remember the sha256 of a blob of the Hub's cache, if it is what it was before its last byte was read."""
    _remember(_memory_of_blob(blob, SHA256), blob, state, sha256)


def _hash_once(path: Path, kind: HashKind) -> str:
    """Return the hash of a file, from memory if the file has not changed since it was remembered."""
    memory = _memory_of(path, kind)
    if memory is None:
        return kind.of_file(path)
    state = FileState.of(path)
    if not is_hashing_again():
        with suppress(OSError, ValueError):  # no memory, or a damaged one: work it out
            remembered = json.loads(memory.read_text("utf-8"))
            if isinstance(remembered, dict) and remembered == _record(state, remembered.get("hash")):
                return str(remembered["hash"])
    actual = kind.of_file(path)
    _remember(memory, path, state, actual)
    return actual


def _remember(memory: Path, path: Path, state: FileState, actual: str) -> None:
    """Write down the hash of a file, in the file `memory`."""
    if FileState.of(path) != state:
        return  # it was written meanwhile: the hash may be of neither content
    with suppress(OSError):  # a cache that cannot be written: the file is hashed each time
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_text(memory, json.dumps(_record(state, actual)), shared=True)


def _record(state: FileState, actual: object) -> dict[str, object]:
    """Return what is written down: the hash, with what of a file changes with its content."""
    return {
        "size": state.size,
        "mtime_ns": state.mtime_ns,
        "ctime_ns": state.ctime_ns,  # no program can set it back
        "device": state.device,
        "inode": state.inode,
        "hash": actual,
    }


def _memory_of(path: Path, kind: HashKind) -> Path | None:
    """Return the file that remembers the hash of `path`; `None` if hashing is cheap, or a change could go unnoticed."""
    blob = _blob_of(path)
    if blob is not None:
        return _memory_of_blob(blob, kind)
    status = path.stat()
    if status.st_size < _LARGE or time.time() - status.st_mtime < _SETTLED:
        return None
    from huggingface_hub.constants import HF_HOME

    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    return Path(HF_HOME, "dem_hub", "hashes", f"{name}{kind.suffix}.json")


def _memory_of_blob(blob: Path, kind: HashKind) -> Path:
    return blob.parent.parent / _MEMORY / f"{blob.name}{kind.suffix}.json"
