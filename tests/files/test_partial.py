"""What killed processes left is deleted, and what a living one writes is not."""

import os
from pathlib import Path

import pytest

from dem_hub.files.atomic import atomic_folder, write_text
from dem_hub.files.partial import Partial, is_partial_of, new_name, remove_leftovers


def leave_partial(target: Path) -> None:
    """Begin a folder in a process that ends without a word."""
    child = os.fork()
    if child == 0:
        with atomic_folder(target) as folder:
            (folder / "half").write_text("half")
            os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("name", ["vector", "vector.x", "a b[1]*"])
def test_leftovers_of_killed_processes_go(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    leave_partial(target)
    assert len(list(tmp_path.iterdir())) == 2  # the folder, and its lock
    with atomic_folder(target) as folder:
        (folder / "whole").write_text("whole")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert [path.name for path in target.iterdir()] == ["whole"]


def test_what_is_being_written_stays(tmp_path: Path) -> None:
    target = tmp_path / "vector"
    other = Partial(target)
    (other.folder / "half").write_text("half")
    with atomic_folder(target) as folder:
        (folder / "first").write_text("first")
    assert (other.folder / "half").read_text() == "half"
    other.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["vector"]


def test_partial_files_of_another_target_stay(tmp_path: Path) -> None:
    other = tmp_path / "vector.x"
    leave_partial(other)
    left = sorted(tmp_path.iterdir())
    write_text(tmp_path / "vector", "text")
    remove_leftovers(tmp_path / "vector")
    assert sorted(tmp_path.iterdir()) == sorted([*left, tmp_path / "vector"])


def test_a_partial_file_of_a_killed_process_goes(tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    new_name(path).write_text("half")
    write_text(path, "whole")
    assert {entry.name: entry.read_text() for entry in tmp_path.iterdir()} == {"index.json": "whole"}


def test_names(tmp_path: Path) -> None:
    names = {new_name(tmp_path / "a").name for _ in range(100)}
    assert len(names) == 100
    assert all(is_partial_of(name, Path("a")) and not is_partial_of(name, Path("b")) for name in names)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_the_umask_is_kept(tmp_path: Path, umask: int) -> None:
    previous = os.umask(umask)
    try:
        with atomic_folder(tmp_path / "new") as folder:
            write_text(folder / "file", "text")
    finally:
        os.umask(previous)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o777 & ~umask
    assert (tmp_path / "new" / "file").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_folder_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    with atomic_folder(tmp_path / "private") as folder:
        (folder / "file").write_text("text")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o700
