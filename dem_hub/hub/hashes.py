"""Whether files are what they should be, by their sha256; of a file in the Hub's cache, and of any large one, it is worked out once.

The Hub's client checks the sizes of what it downloads, and nothing else. But it names each blob in its cache after the hash that the Hub
gave for it, so the bytes can be held against that name with no request more. A file that was hashed once is known again by its size,
time and inode, as git knows it; that lies beside the cache's own files, or under `HF_HOME` for files that are elsewhere.
"""

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType

from dem_hub.errors import CheckpointError, refuse
from dem_hub.files.atomic import write_text
from dem_hub.files.strict_json import check_inside

_MEMORY = ".dem_hub"
_LARGE = 1 << 24  # bytes; what is smaller is hashed in no time
_SETTLED = 2.0  # seconds after which one more change would show in a file's time, on any file system
_SHORT = 16  # hex digits (64 bits)
_HEX = re.compile(r"[0-9a-f]+")


def digest(file: str | os.PathLike[str]) -> str:
    """The sha256 of a file, 64 hex digits.

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
    return _remembered(Path(file), _sha256)


def short_hash(digest: str | None) -> str:
    """Return the first 16 hex digits of a hash, for messages; enough to tell two files or two models apart.

    `None`, the fingerprint of a base that is not recorded, is "unknown".
    """
    return "unknown" if digest is None else digest[:_SHORT]


def verify_files(folder: Path, files: Mapping[str, str], known: Mapping[str, str] = MappingProxyType({})) -> None:
    """Check the files of a folder against their recorded sha256; of files that are not here it may be known all the same.

    Raises:
        `CheckpointError`: lists every file that is missing or altered, with both digests.
    """
    faults = []
    for name, expected in sorted(files.items()):
        check_inside(name, f"file of '{folder}'")
        path = folder / name
        found = known.get(name) or (digest(path) if path.is_file() else "no such file")
        if found != expected:
            faults.append(f"'{name}' has sha256 {short_hash(found)}, recorded is {short_hash(expected)}")
    if faults:
        refuse(
            CheckpointError,
            f"Files of '{folder}' are missing or were altered.",
            faults,
            "Nothing was loaded. Fetch them again.",
        )


def verify_downloads(repo_id: str, files: Iterable[Path]) -> None:
    """Check files of the Hub's cache against the hashes that the Hub gave for them, and take those away that are something else.

    Raises:
        `CheckpointError`: lists every file that is not what the Hub has.
    """
    faults, damaged = [], []
    for path in files:
        blob = _blob_of(path)
        if blob is None:
            continue
        kind = _kind(blob.name)
        found = _remembered(path, kind) if kind is not None else blob.name
        if found != blob.name:
            faults.append(f"'{path.name}' has hash {short_hash(found)}, the Hub's has {short_hash(blob.name)}")
            damaged += [blob.resolve(), blob, path]
    if faults:
        remedy = _take_out(damaged)
        refuse(CheckpointError, f"Files of '{repo_id}' were damaged on their way from the Hub.", faults, remedy)


def is_version(content: Path | str, hub_hash: str) -> bool:
    """Whether a file, or a text, is what the Hub knows by a hash: the sha256 of a large file, git's id of a small one."""
    kind = _kind(hub_hash)
    if kind is None:
        return False
    if isinstance(content, Path):
        return _remembered(content, kind) == hub_hash
    data = content.encode()
    return hub_hash == (_git_id(data) if kind is _git else hashlib.sha256(data).hexdigest())


def _take_out(damaged: Iterable[Path]) -> str:
    """Remove files from the cache; says what came of it."""
    try:
        for path in damaged:
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"Nothing was loaded. They could not be taken out of the cache ({error}): remove them, or name another cache_dir."
    return "Nothing was loaded, and they were taken out of the cache. Try again: they are downloaded anew."


def _remembered(path: Path, kind: Callable[[Path], str]) -> str:
    """The hash of a file, from memory if it is the file that was hashed then."""
    memory, status = _memory_of(path, kind), path.stat()
    if memory is None:
        return kind(path)
    known = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
    with suppress(OSError, ValueError):
        remembered = json.loads(memory.read_text("utf-8"))
        if isinstance(remembered, dict) and remembered == {**known, "hash": remembered.get("hash")}:
            return str(remembered["hash"])
    found = kind(path)
    with suppress(OSError):  # where nothing may be written, it is hashed each time
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_text(memory, json.dumps({**known, "hash": found}))
    return found


def _memory_of(path: Path, kind: Callable[[Path], str]) -> Path | None:
    """Where the hash of a file is kept; `None` for one that is small, or so new that a change to come could go unseen."""
    blob = _blob_of(path)
    if blob is not None:
        return blob.parent.parent / _MEMORY / f"{blob.name}{kind.__name__}.json"
    status = path.stat()
    if status.st_size < _LARGE or time.time() - status.st_mtime < _SETTLED:
        return None
    from huggingface_hub.constants import HF_HOME

    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    return Path(HF_HOME, "dem_hub", "hashes", f"{place}{kind.__name__}.json")


def _blob_of(path: Path) -> Path | None:
    """The blob that a file of the Hub's cache is a link to."""
    if not path.is_symlink():
        return None
    blob = Path(os.path.normpath(path.parent / path.readlink()))
    return blob if blob.parent.name == "blobs" else None


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _git(path: Path) -> str:
    """By which the Hub knows small files."""
    return _git_id(path.read_bytes())


def _git_id(content: bytes) -> str:
    """The id that git gives a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _kind(name: str) -> Callable[[Path], str] | None:
    """With which function a hash was made, by its form."""
    return {64: _sha256, 40: _git}.get(len(name)) if _HEX.fullmatch(name) else None
