"""Downloads that are hashed while they come.

A model's hash takes as long as its merge, and a core is idle while the network is waited for. So what has come of a
file is hashed at once, while the system still has it in memory, and the check of the whole file finds its hash.

The Hub's client writes a file from front to back, plain or by Xet (its `SequentialWriter`), and gives the file its
name, which is its hash, when it is whole. A file that was written in another order gets another hash here. It is not
remembered, and the check hashes the file again.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from dem_hub.files.states import FileState
from dem_hub.hub.hashes import SHA256
from dem_hub.hub.remembered import remember_blob

# The end of the name of a file that is not whole yet. The name begins with its hash.
_INCOMPLETE = ".incomplete"
# Hex digits of a sha256. The Hub's other files are small, and are hashed when they are checked.
_DIGITS = 64
# Bytes that are read at a time. Chosen by hand, not measured.
_CHUNK = 1 << 20


@dataclass
class _Arrival:
    """A file that is downloaded: the blob that it becomes, and the hash of what was read of it so far."""

    blob: Path
    stream: BinaryIO
    sha256: Any = field(default_factory=hashlib.sha256)

    def read(self) -> None:
        """Hash what has come since the last call."""
        while chunk := self.stream.read(_CHUNK):
            self.sha256.update(chunk)

    def remember(self) -> None:
        """Hash the rest, and remember the hash, if the file is whole and was written from front to back."""
        state = FileState.of(self.blob)
        if not state.is_of(self.stream):  # another process has downloaded the blob
            return
        self.read()
        if self.sha256.hexdigest() == self.blob.name:
            remember_blob(self.blob, state, SHA256.suffix, self.blob.name)


class Arrivals:
    """The files of one repository that are being downloaded into the Hub's cache; see [`arrivals`]."""

    def __init__(self, blobs: Path) -> None:
        self._blobs = blobs
        self._found: dict[str, _Arrival] = {}

    def read(self) -> None:
        """Hash what has come of each file since the last call."""
        for path in self._blobs.glob(f"*{_INCOMPLETE}"):
            sha256 = path.name.partition(".")[0]
            if path.name not in self._found and len(sha256) == _DIGITS:
                with suppress(OSError):  # it was moved to its place
                    self._found[path.name] = _Arrival(self._blobs / sha256, path.open("rb"))
        for arrival in self._found.values():
            with suppress(OSError):
                arrival.read()

    def remember(self) -> None:
        """Remember the hash of each file that is whole now."""
        for arrival in self._found.values():
            with suppress(OSError):  # it has not come whole
                arrival.remember()

    def close(self) -> None:
        """Close all files."""
        for arrival in self._found.values():
            arrival.stream.close()


@contextmanager
def arrivals(folder: Path) -> Iterator[Arrivals]:
    """Yield the files that are downloaded into a repository's folder of the Hub's cache within the block."""
    blobs = folder / "blobs"
    if os.name == "nt":
        # A file that is open cannot get its name there, and most caches there have no blobs.
        blobs = folder / "none"
    found = Arrivals(blobs)
    try:
        yield found
    finally:
        found.close()
