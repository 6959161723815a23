"""A folder is replaced as a whole, wherever its process is killed and whatever the system can do."""

import errno
import os
from contextlib import suppress
from pathlib import Path

import pytest

import dem_hub.files.replacing
from dem_hub.errors import ConfigError
from dem_hub.files.atomic import atomic_folder
from dem_hub.files.exchange import exchange
from dem_hub.files.replacing import JOURNAL, read_steadily, settle
from tests.support.killing import KILLED, run_and_die

OLD = {"a": "old", "b": "old", "gone": "old", "notes": "mine"}
NEW = {"a": "new", "b": "new", "c": "new", "notes": "mine"}


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    folder.mkdir()
    for name, text in OLD.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(params=["exchange", "moves", "folders"])
def way(request: pytest.FixtureRequest, target: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """How the folder is replaced: by an exchange, without one, or with a folder in it that stays."""
    if request.param == "moves":
        monkeypatch.setattr(dem_hub.files.replacing, "exchange", lambda first, second: False)
    if request.param == "folders":
        (target / "below").mkdir()
    return str(request.param)


def replace(target: Path) -> None:
    with atomic_folder(target, lambda name: name == "gone", last="c") as folder:
        for name, text in NEW.items():
            if name != "notes":
                (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(folder.iterdir()) if path.is_file()}


def test_whole_wherever_it_is_killed(target: Path, way: str) -> None:
    """Killed at its first change of a name, its second, and so on."""
    for count in range(1, 200):
        status = run_and_die(lambda: replace(target), count)
        settle(target)
        found = contents(target)
        assert found in (OLD, NEW)
        if status == 0:
            break
        assert status == KILLED
        for name in set(found) - {"notes"}:
            (target / name).unlink()
        for name, text in OLD.items():
            (target / name).write_text(text)
    assert 10 < count < 199
    assert contents(target) == NEW
    assert [path.name for path in target.parent.iterdir()] == ["target"]
    assert (target / "below").is_dir() == (way == "folders")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES])
def test_whole_whatever_fails(target: Path, way: str, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """One rename of Python's fails, each in its turn; the next run completes."""
    real = Path.replace
    for count in range(1, 20):
        calls = []

        def fail(self: Path, place: Path, calls: list[Path] = calls, count: int = count) -> Path:
            calls.append(self)
            if len(calls) == count:
                raise OSError(number, os.strerror(number))
            return real(self, place)

        with monkeypatch.context() as patch, suppress(OSError):
            patch.setattr(Path, "replace", fail)
            replace(target)
        settle(target)
        assert contents(target) in (OLD, NEW)
        replace(target)
        assert contents(target) == NEW
        assert [path.name for path in target.parent.iterdir()] == ["target"]
        if len(calls) < count:
            return
        (target / "c").unlink()
        for name, text in OLD.items():
            (target / name).write_text(text)
    raise AssertionError("It never came to its end.")


def test_a_file_that_comes_at_the_last_moment_stays(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(first: Path, second: Path) -> bool:
        (second / "late").write_text("mine")
        return exchange(first, second)

    monkeypatch.setattr(dem_hub.files.replacing, "exchange", late)
    replace(target)
    assert contents(target) == {**NEW, "late": "mine"}


def test_links_stay(target: Path) -> None:
    (target / "link").symlink_to("notes")
    replace(target)
    assert (target / "link").readlink() == Path("notes")


def test_a_link_to_the_folder_stays(target: Path) -> None:
    link = target.parent / "link"
    link.symlink_to("target")
    replace(link)
    assert link.is_symlink()
    assert contents(target) == NEW


def test_the_working_directory_keeps_its_place(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(target)
    replace(Path())
    assert sorted(path.name for path in Path.cwd().iterdir()) == sorted(NEW)


def test_a_journal_can_name_nothing_outside(target: Path) -> None:
    (target.parent / "secret").mkdir()
    (target / JOURNAL).write_text('{"from": "../secret", "remove": []}')
    with pytest.raises(ConfigError, match=r"names '\.\./secret', which is no partial folder"):
        settle(target)
    (target / JOURNAL).write_text('{"from": "../.target.partial", "remove": ["../secret"]}')
    with pytest.raises(ConfigError, match=r"names must be relative"):
        settle(target)
    assert (target.parent / "secret").is_dir()


def test_a_folder_that_was_replaced_meanwhile_is_read_again(target: Path) -> None:
    """What was read of two states fails, and is read again."""
    tries = []

    def read() -> str:
        tries.append(1)
        first = (target / "a").read_text()
        if len(tries) == 1:
            replace(target)
        second = (target / "b").read_text()
        if first != second:
            raise ConfigError("torn")
        return second

    assert read_steadily(target, read) == "new"
    assert len(tries) == 2

    def fail() -> None:
        raise ConfigError("damaged")

    with pytest.raises(ConfigError, match="damaged"):
        read_steadily(target, fail)
