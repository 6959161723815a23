"""What was worked out of a file is remembered, and worked out again once the file has changed."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dem_hub.errors import ConfigError
from dem_hub.hub.remembered import hashing_again, remembered
from tests.support.hub_cache import cached

SUFFIX = "_beginning"
LARGE = 1 << 24


class Beginning:
    """Reads the first eight bytes of a file, and counts how often it did."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, path: Path) -> str:
        self.count += 1
        with path.open("rb") as file:
            return file.read(8).decode()

    def of(self, path: Path) -> str:
        return str(remembered(path, SUFFIX, self))


def written(path: Path, *, size: int = LARGE, age: float = 60) -> Path:
    """Make a file that was last written `age` seconds ago."""
    path.write_bytes(b"contents")
    os.truncate(path, size)
    os.utime(path, (time.time() - age,) * 2)
    return path


@pytest.fixture(params=["in a folder", "in the Hub's cache"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A file that is remembered."""
    if request.param == "in a folder":
        return written(tmp_path / "file")
    return cached(tmp_path, "0" * 64)


def test_a_file_is_read_once(path: Path) -> None:
    beginning = Beginning()
    assert [beginning.of(path), beginning.of(path)] == ["contents"] * 2
    assert beginning.count == 1


@pytest.mark.parametrize(("size", "age"), [(LARGE - 1, 60), (LARGE, 0)], ids=["small", "just written"])
def test_other_files_are_read_each_time(tmp_path: Path, size: int, age: float) -> None:
    """A second write within the same tick of the file system's clock would not show."""
    path = written(tmp_path / "file", size=size, age=age)
    beginning = Beginning()
    assert beginning.of(path) == beginning.of(path)
    assert beginning.count == 2


def longer(file: Path) -> None:
    with file.open("ab") as stream:
        stream.write(b"!")


def later(file: Path) -> None:
    os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))


def another(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    other.replace(file)


def rewritten(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.write(b"CONTENTS")


@pytest.mark.parametrize("change", [longer, later, another, rewritten])
def test_a_changed_file_is_read_again(path: Path, change: Callable[[Path], None]) -> None:
    """Anybody can set the time of a file's content. The time of its inode is the kernel's."""
    beginning = Beginning()
    beginning.of(path)
    before = path.stat()
    change(path.resolve())
    if change is not later:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert beginning.of(path) == ("CONTENTS" if change is rewritten else "contents")
    assert beginning.count == 2


def test_a_file_that_is_written_meanwhile_is_not_remembered(path: Path) -> None:
    def work_out(file: Path) -> str:
        rewritten(file.resolve())
        return "contents"

    remembered(path, SUFFIX, work_out)
    assert Beginning().of(path) == "CONTENTS"


@pytest.mark.parametrize("memory", ["", "{", "[]", "{}", '{"hash": 1}'])
def test_a_memory_that_is_damaged_counts_for_nothing(tmp_path: Path, memory: str) -> None:
    path = cached(tmp_path, "0" * 64)
    beginning = Beginning()
    beginning.of(path)
    for file in memories(tmp_path):
        file.write_text(memory)
    assert beginning.of(path) == "contents"
    assert beginning.count == 2


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    """A file in the folder's place stops the superuser too."""
    path = cached(tmp_path, "0" * 64)
    (path.parents[2] / ".dem_hub").write_text("")
    beginning = Beginning()
    assert [beginning.of(path), beginning.of(path)] == ["contents"] * 2
    assert beginning.count == 2


def test_all_files_are_read_again_when_asked(path: Path) -> None:
    beginning = Beginning()
    for verify in ("quick", "quick", "full", "full", "quick"):
        with hashing_again(verify):  # type: ignore[arg-type]
            beginning.of(path)
    assert beginning.count == 3


def test_another_word() -> None:
    with pytest.raises(ConfigError, match="verify is 'all'; it must be one of quick, full"), hashing_again("all"):  # type: ignore[arg-type]
        pass


def memories(cache: Path) -> list[Path]:
    """The files that remember files of a cache with one repository."""
    return list(cache.glob("models--*/.dem_hub/*"))
