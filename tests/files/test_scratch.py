"""Temporary folders: gone with the run, or with the next one, and nobody else's."""

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dem_hub import DistributionVector
from dem_hub.files.scratch import scratch_folder
from tests.support.tiny_models import Models

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="folders of users are told apart by their ids")


@pytest.fixture(autouse=True)
def system_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's place for temporary folders, empty."""
    place = tmp_path / "system"
    place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    return place


def leave_one(place: Path) -> Path:
    """Let a process make a temporary folder with a file in it, and kill it."""
    code = (
        "import os, signal; from dem_hub.files.scratch import scratch_folder; scratch = scratch_folder(); folder = scratch.__enter__()\n"
        "(folder / 'weights').write_bytes(bytes(1000)); print(folder, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "TMPDIR": str(place)}
    return Path(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment).stdout.strip()
    )


def test_what_a_killed_run_left_goes_with_the_next_one(system_place: Path) -> None:
    left = leave_one(system_place)
    assert left.is_dir()
    with scratch_folder() as living:
        assert not left.exists()
        with scratch_folder() as folder:
            assert folder.is_dir()
            assert living.is_dir(), "its process lives"
        assert not folder.exists()
    assert list(left.parent.iterdir()) == []


def test_what_is_not_ours_stays(system_place: Path) -> None:
    with scratch_folder() as folder:
        others = [system_place / "dem_hub-notes", folder.parent / "notes", folder.parent / ".scratch.mine.partial"]
        for other in others:
            other.mkdir()
    with scratch_folder():
        assert all(other.is_dir() for other in others)


def test_the_folder_is_the_users_alone(system_place: Path) -> None:
    with scratch_folder() as folder:
        assert folder.parent.parent == system_place
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("trap", ["a link", "a folder for all", "a file"])
def test_what_somebody_else_put_there_is_not_used(system_place: Path, tmp_path: Path, trap: str) -> None:
    place = system_place / f"dem_hub-{os.getuid()}"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if trap == "a link":
        place.symlink_to(elsewhere)
    elif trap == "a folder for all":
        place.mkdir()
        place.chmod(0o777)
    else:
        place.touch()
    with scratch_folder() as folder:
        assert folder.is_dir()
        assert folder.parent != place
    assert list(elsewhere.iterdir()) == []


def test_a_vector_that_is_not_saved_leaves_nothing(llama: Models, system_place: Path) -> None:
    vector = DistributionVector.extract(llama.base, llama.low, codec="lowrank")
    assert vector.folder.is_relative_to(system_place)
    del vector
    assert [path for path in system_place.rglob("*") if path.is_file()] == []
