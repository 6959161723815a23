"""A partial folder is resumed for the same purpose, and for no other."""

import json
from pathlib import Path

import pytest

import dem_hub.files.resumable
from dem_hub.errors import BusyError, CheckpointError
from dem_hub.files.resumable import partial_path, recorded_bytes, resumable_folder


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A target of 10 bytes, of which 4 were written and recorded before an interrupt."""
    monkeypatch.setattr(dem_hub.files.resumable, "STRIDE", 1)
    target = tmp_path / "target"
    with pytest.raises(KeyboardInterrupt) as caught, resumable_folder(target, "one", 10, "last") as partial:
        (partial.folder / "weights").write_bytes(b"0123")
        partial.record(4)
        partial.wait()
        raise KeyboardInterrupt
    assert str(partial_path(target)) in caught.value.__notes__[0]
    return target


def test_the_same_purpose_continues(interrupted: Path) -> None:
    with resumable_folder(interrupted, "one", 10, "last") as partial:
        assert partial.written == 4
        assert (partial.folder / "weights").read_bytes() == b"0123"
    assert [path.name for path in interrupted.iterdir()] == ["weights"]
    assert [path.name for path in interrupted.parent.iterdir()] == ["target"]


def test_another_purpose_begins_again(interrupted: Path) -> None:
    with resumable_folder(interrupted, "two", 10, "last") as partial:
        assert partial.written == 0
        assert list(partial.folder.iterdir()) == []


def test_a_refusal_leaves_nothing(interrupted: Path) -> None:
    with pytest.raises(CheckpointError), resumable_folder(interrupted, "one", 10, "last"):
        raise CheckpointError("refused")
    assert list(interrupted.parent.iterdir()) == []


@pytest.mark.parametrize("journal", ["", "{", "[]", "{}", '{"purpose": "one", "written": null}'])
def test_a_damaged_journal_counts_as_none(interrupted: Path, journal: str) -> None:
    folder = partial_path(interrupted)
    assert recorded_bytes(folder, "one") == 4
    (folder / ".journal.json").write_text(journal)
    assert recorded_bytes(folder, "one") == 0


def test_records_are_a_stride_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last stride is not recorded: the folder is complete soon after."""
    monkeypatch.setattr(dem_hub.files.resumable, "STRIDE", 4)
    recorded = []
    with resumable_folder(tmp_path / "target", "one", 12, "last") as partial:
        for written in range(1, 13):
            partial.record(written)
            partial.wait()
            journal = partial.folder / ".journal.json"
            recorded.append(json.loads(journal.read_text())["written"] if journal.is_file() else 0)
    assert recorded == [0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 8]


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    target = tmp_path / "target"

    def write_again() -> None:
        with resumable_folder(target, "one", 10, "last"):
            pass

    with (
        resumable_folder(target, "one", 10, "last"),
        pytest.raises(BusyError, match="Another process is writing '.*target'"),
    ):
        write_again()
    assert (tmp_path / "target").is_dir()
