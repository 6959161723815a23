"""Files and folders appear complete or not at all."""

from pathlib import Path

import pytest

from dem_hub.files.atomic import atomic_folder, write_text


def test_write_text_is_atomic(tmp_path: Path) -> None:
    write_text(tmp_path / "a.json", "old")
    write_text(tmp_path / "a.json", "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a.json": "new"}


def test_atomic_folder_that_fails(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "new") as folder:
        (folder / "half").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_atomic_folder_over_another(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for name in ("kept", "changed"):
        (tmp_path / "there" / name).write_text("old")
    with atomic_folder(tmp_path / "there") as folder:
        (folder / "changed").write_text("new")
        (folder / "added").write_text("new")
    assert {path.name: path.read_text() for path in (tmp_path / "there").iterdir()} == {
        "kept": "old",
        "changed": "new",
        "added": "new",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
