"""Whether files are what they should be, by their sha256; of a file in the Hub's cache it is worked out once.

The Hub's client checks the sizes of what it downloads, and nothing else. But it names each blob in its cache after the hash that the Hub
gave for it, so the bytes can be held against that name with no request more. A blob that was hashed once is known again by its size,
time and inode, which lie beside the cache's own files.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from dem_hub.errors import CheckpointError, refuse
from dem_hub.files import write_text
from dem_hub.records import check_inside

_MEMORY = ".dem_hub"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")


def digest(file: str | os.PathLike[str]) -> str:
    """The sha256 of a file, 64 hex digits.

    Example:

    ```python
    >>> import tempfile
    >>> from pathlib import Path
    >>> from dem_hub.integrity import digest
    >>> path = Path(tempfile.mkdtemp()) / "empty"
    >>> path.touch()
    >>> digest(path)[:16]
    'e3b0c44298fc1c14'

    ```
    """
    path = Path(file)
    blob = _blob_of(path)
    if blob is None:
        return _hash(path)
    memory = blob.parent.parent / _MEMORY / f"{blob.name}.json"
    status = path.stat()
    known = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
    with suppress(OSError, ValueError):
        remembered = json.loads(memory.read_text("utf-8"))
        sha256 = str(remembered.pop("sha256"))
        if remembered == known:
            return sha256
    sha256 = _hash(path)
    with suppress(OSError):  # a cache that may only be read is hashed each time
        memory.parent.mkdir(exist_ok=True)
        write_text(memory, json.dumps({**known, "sha256": sha256}))
    return sha256


def verify_files(folder: Path, files: Mapping[str, str]) -> None:
    """Check the files of a folder against their recorded sha256.

    Raises:
        `CheckpointError`: lists every file that is missing or altered, with both digests.
    """
    faults = []
    for name, expected in sorted(files.items()):
        check_inside(name, f"file of '{folder}'")
        path = folder / name
        found = digest(path) if path.is_file() else "no such file"
        if found != expected:
            faults.append(f"'{name}' has sha256 {found[:16]}, recorded is {expected[:16]}")
    if faults:
        refuse(CheckpointError, f"Files of '{folder}' are missing or were altered.", faults, "Nothing was loaded. Fetch them again.")


def verify_downloads(repo_id: str, files: Iterable[Path]) -> None:
    """Check files of the Hub's cache against the hashes that the Hub gave for them, and take those away that are something else.

    Raises:
        `CheckpointError`: lists every file that is not what the Hub has.
    """
    faults = []
    for path in files:
        blob = _blob_of(path)
        if blob is None:
            continue
        found = digest(path) if _SHA256.fullmatch(blob.name) else _git_hash(path) if _SHA1.fullmatch(blob.name) else blob.name
        if found != blob.name:
            faults.append(f"'{path.name}' has hash {found[:16]}, the Hub's has {blob.name[:16]}")
            for name in (blob.resolve(), blob, path):
                name.unlink(missing_ok=True)
    if faults:
        remedy = "Nothing was loaded, and they were taken out of the cache. Try again: they are downloaded anew."
        refuse(CheckpointError, f"Files of '{repo_id}' were damaged on their way from the Hub.", faults, remedy)


def _blob_of(path: Path) -> Path | None:
    """The blob that a file of the Hub's cache is a link to."""
    if not path.is_symlink():
        return None
    blob = Path(os.path.normpath(path.parent / path.readlink()))
    return blob if blob.parent.name == "blobs" else None


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _git_hash(path: Path) -> str:
    """The id that git gives a file's contents, by which the Hub knows small files."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
