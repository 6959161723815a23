"""Checks that files are still those that were opened: what was checked is what is read.

Weights are memory-mapped and read piece by piece, after their headers and hashes were checked. A file that another
process replaces or writes into meanwhile would give a mixture of both, and one that becomes shorter would end this
process with a signal. So the system's record of each file is compared before every piece, and again at the end.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dem_hub.errors import CheckpointError, refuse


@dataclass(frozen=True)
class FileState:
    """The system's record of a file: which one it is, how long it is, and when it was changed."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    links: int

    @classmethod
    def of(cls, path: Path) -> "FileState":
        """Return the state of a file, or of the file that a link leads to."""
        status = path.stat()
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_nlink
        )

    def is_of(self, stream: BinaryIO) -> bool:
        """Check whether an open file is the same one, whatever its content."""
        status = os.fstat(stream.fileno())
        return (status.st_dev, status.st_ino) == (self.device, self.inode)

    def change(self, now: "FileState") -> str:
        """Return in words what has changed since; empty if nothing has."""
        if (self.device, self.inode) != (now.device, now.inode):
            return "was replaced by another file"
        if self.size != now.size:
            return f"had {self.size} bytes and has {now.size}"
        # A new or a removed hard link changes the ctime, and no byte.
        if self.mtime_ns != now.mtime_ns or (self.ctime_ns != now.ctime_ns and self.links == now.links):
            return "was written to"
        return ""


def states_of(files: Iterable[Path]) -> dict[Path, FileState]:
    """Return the state of each file."""
    return {file: FileState.of(file) for file in files}


def check_unchanged(states: Mapping[Path, FileState]) -> None:
    """Refuse files that are not those that were opened.

    A file that has been deleted is not refused: what is open of it stays readable, and is what was checked.

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If files were replaced or written to. All of them are listed.
    """
    faults = []
    for path, state in states.items():
        try:
            change = state.change(FileState.of(path))
        except FileNotFoundError:
            continue
        if change:
            faults.append(f"'{path}' {change}")
    if faults:
        refuse(
            CheckpointError,
            "Files changed while they were in use.",
            faults,
            "What was computed from them is of no use. Run it again once nobody writes to them.",
        )
