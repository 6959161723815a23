"""A file that changes between its check and its use is found out, however it changes."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dem_hub.errors import CheckpointError
from dem_hub.files.states import check_unchanged, states_of


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def write_in_place(path: Path) -> None:
    """As a program does that hides it: the same size, and the old time set back."""
    status = path.stat()
    with path.open("r+b") as stream:
        stream.write(b"C")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(b"more")


# What somebody can do to a file, and what the message says of it.
CHANGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "replaced": (replace, "was replaced by another file"),
    "written in place": (write_in_place, "was written to"),
    "shorter": (shrink, "had 8 bytes and has 4"),
    "longer": (grow, "had 8 bytes and has 12"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_refused(tmp_path: Path, change: str) -> None:
    file, other = tmp_path / "file", tmp_path / "unchanged"
    for path in (file, other):
        path.write_bytes(b"contents")
    states = states_of([file, other])
    check_unchanged(states)
    act, message = CHANGES[change]
    act(file)
    with pytest.raises(CheckpointError, match=f"'{file}' {message}") as caught:
        check_unchanged(states)
    assert str(other) not in str(caught.value)


def test_what_changes_no_byte_is_not_refused(tmp_path: Path) -> None:
    """A hard link comes and goes (a backup, a snapshot), the file is read, and at last it is deleted."""
    file = tmp_path / "file"
    file.write_bytes(b"contents")
    states = states_of([file])
    os.link(file, tmp_path / "link")
    check_unchanged(states)
    file.read_bytes()
    check_unchanged(states)
    file.unlink()
    check_unchanged(states)
