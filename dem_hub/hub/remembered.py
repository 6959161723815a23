"""What was worked out of the content of a file, such as its hash, remembered until the file changes.

It is remembered with the file's size, times and inode, as git does, and worked out again only when one of these
changes. (The time of the last change of content can be set by anybody; that of the last change of the inode is the
kernel's.) The memory of a file in the Hub's cache lies there next to the blobs, that of any other file under `HF_HOME`.
Within [`hashing_again`] nothing that is remembered counts.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, get_args

from dem_hub.defaults import Verify
from dem_hub.errors import ConfigError
from dem_hub.files.atomic import write_text
from dem_hub.files.states import FileState

# The folder of memories, in a repository's folder of the Hub's cache.
_MEMORY = ".dem_hub"
# Bytes from which a file outside the cache is remembered; smaller files are read quickly. Chosen by hand, not measured.
_LARGE = 1 << 24
# Seconds since the last change. A file that was written a moment ago may be written again within the same tick of
# the file system's clock, and its time would not show it. The coarsest clock in use is that of FAT, with 2 seconds.
_SETTLED = 2.0

# Whether what is remembered counts for nothing, in this thread.
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


def remembered(path: Path, suffix: str, work_out: Callable[[Path], Any]) -> Any:
    """Return what `work_out` returns for a file, from memory if the file has not changed since it was remembered.

    Args:
        path (`Path`): The file. Outside the Hub's cache it is remembered if it is large, and not just written.
        suffix (`str`): What is worked out: the end of the name of the file that remembers it. It is on users' disks, so
            it must not change.
        work_out (`Callable[[Path], Any]`): Reads the file, and returns what JSON can hold.
    """
    memory = _memory_of(path, suffix)
    if memory is None:
        return work_out(path)
    state = FileState.of(path)
    if not is_hashing_again():
        with suppress(OSError, ValueError):  # no memory, or a damaged one: work it out
            record = json.loads(memory.read_text("utf-8"))
            if isinstance(record, dict) and record == _record(state, record.get("hash")):
                return record["hash"]
    result = work_out(path)
    _remember(memory, path, state, result)
    return result


def blob_of(path: Path) -> Path | None:
    """Return the blob that a file of the Hub's cache links to; `None` for any other file."""
    if not path.is_symlink():
        return None
    blob = Path(os.path.normpath(path.parent / path.readlink()))
    return blob if blob.parent.name == "blobs" else None


def remember_blob(blob: Path, state: FileState, suffix: str, result: Any) -> None:
    """Remember what was worked out of a blob of the Hub's cache, if it is what it was before its last byte was read."""
    _remember(_memory_of_blob(blob, suffix), blob, state, result)


def _remember(memory: Path, path: Path, state: FileState, result: Any) -> None:
    """Write down what was worked out of a file, in the file `memory`."""
    if FileState.of(path) != state:
        return  # it was written meanwhile: the result may be of neither content
    with suppress(OSError):  # a cache that cannot be written: it is worked out each time
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_text(memory, json.dumps(_record(state, result)), shared=True)


def _record(state: FileState, result: Any) -> dict[str, Any]:
    """Return what is written down: the result, with what of a file changes with its content."""
    return {
        "size": state.size,
        "mtime_ns": state.mtime_ns,
        "ctime_ns": state.ctime_ns,  # no program can set it back
        "device": state.device,
        "inode": state.inode,
        "hash": result,
    }


def _memory_of(path: Path, suffix: str) -> Path | None:
    """Return the file that remembers `path`; `None` if it is read quickly, or a change could go unnoticed."""
    blob = blob_of(path)
    if blob is not None:
        return _memory_of_blob(blob, suffix)
    status = path.stat()
    if status.st_size < _LARGE or time.time() - status.st_mtime < _SETTLED:
        return None
    from huggingface_hub.constants import HF_HOME

    name = hashlib.sha256(str(path.resolve()).encode()).hexdigest()
    return Path(HF_HOME, "dem_hub", "hashes", f"{name}{suffix}.json")


def _memory_of_blob(blob: Path, suffix: str) -> Path:
    return blob.parent.parent / _MEMORY / f"{blob.name}{suffix}.json"
