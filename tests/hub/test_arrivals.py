"""What is downloaded is hashed while it comes, and the check of the whole file finds its hash."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from dem_hub import DistributionVector
from dem_hub.errors import CheckpointError
from dem_hub.hub import bounded, hashes
from dem_hub.hub.arrivals import arrivals
from dem_hub.hub.hashes import verify_downloads
from tests.fake_hub.server import Hub
from tests.support.published_repos import VECTOR, Published

CONTENT = os.urandom((2 << 20) + 5)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    for part in ("blobs", "snapshots/0"):
        (tmp_path / part).mkdir(parents=True)
    (tmp_path / "snapshots" / "0" / "file").symlink_to(f"../../blobs/{SHA256}")
    return tmp_path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are hashed by the check."""
    found: list[Path] = []
    of_file = hashes.SHA256.of_file

    def spy(path: Path) -> str:
        found.append(path)
        return of_file(path)

    kind = hashes.HashKind(hashes.SHA256.suffix, spy, hashes.SHA256.of_bytes)
    monkeypatch.setattr(hashes, "SHA256", kind)
    return found


def check(repository: Path) -> None:
    verify_downloads("org/base", [repository / "snapshots" / "0" / "file"])


def incomplete(repository: Path, name: str = SHA256) -> Path:
    return repository / "blobs" / f"{name}.0a1b2c3d.incomplete"


def append(path: Path, content: bytes) -> None:
    with path.open("ab") as stream:
        stream.write(content)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, len(CONTENT)])
def test_a_file_that_comes_from_front_to_back_is_not_hashed_again(
    repository: Path, hashed: list[Path], size: int
) -> None:
    path = incomplete(repository)
    with arrivals(repository) as files:
        files.read()
        append(path, CONTENT[:size])
        files.read()
        append(path, CONTENT[size:])
        path.rename(repository / "blobs" / SHA256)
        files.remember()
    check(repository)
    assert hashed == []
    with (repository / "blobs" / SHA256).open("r+b") as stream:  # damaged later
        stream.write(b"x")
    with pytest.raises(CheckpointError, match="damaged"):
        check(repository)
    assert len(hashed) == 1


def test_a_file_that_comes_in_another_order_is_hashed_by_the_check(repository: Path, hashed: list[Path]) -> None:
    path = incomplete(repository)
    path.write_bytes(bytes(100) + CONTENT[100:])
    with arrivals(repository) as files:
        files.read()
        with path.open("r+b") as stream:
            stream.write(CONTENT[:100])
        path.rename(repository / "blobs" / SHA256)
        files.remember()
    check(repository)
    assert len(hashed) == 1


def test_damage_on_the_way_is_not_remembered(repository: Path, hashed: list[Path]) -> None:
    path = incomplete(repository)
    with arrivals(repository) as files:
        append(path, CONTENT[:-1] + bytes([CONTENT[-1] ^ 1]))
        files.read()
        path.rename(repository / "blobs" / SHA256)
        files.remember()
    with pytest.raises(CheckpointError, match="damaged"):
        check(repository)
    assert len(hashed) == 1


def test_a_blob_of_another_process_is_hashed_by_the_check(repository: Path, hashed: list[Path]) -> None:
    """Both processes download it, and the other one is first. Its file has another inode."""
    path = incomplete(repository)
    with arrivals(repository) as files:
        append(path, CONTENT)
        files.read()
        (repository / "blobs" / SHA256).write_bytes(CONTENT)
        path.unlink()
        files.remember()
    check(repository)
    assert len(hashed) == 1


@pytest.mark.parametrize("name", ["0" * 40, "none"])
def test_other_names_are_not_read(repository: Path, name: str) -> None:
    """The Hub names small files by the id of their git blob."""
    path = incomplete(repository, name)
    append(path, CONTENT)
    with arrivals(repository) as files:
        files.read()
        path.rename(repository / "blobs" / name)
        files.remember()
    assert not (repository / ".dem_hub").exists()


def test_a_download_that_ends_early_leaves_nothing(repository: Path) -> None:
    path = incomplete(repository)
    with arrivals(repository) as files:
        append(path, CONTENT[:7])
        files.read()
        path.unlink()
        files.remember()
    assert not (repository / ".dem_hub").exists()


def test_weights_are_not_hashed_after_their_download(
    hub: Hub, published: Published, monkeypatch: pytest.MonkeyPatch, hashed: list[Path]
) -> None:
    """A slow line takes longer than the time between two looks at the cache."""
    monkeypatch.setattr(bounded, "_POLL", 0.01)
    monkeypatch.setattr(hub.journal, "rate", 200_000)
    vector = DistributionVector.from_pretrained(VECTOR)
    weights = next(vector.folder.glob("*.safetensors")).resolve()
    memory = Path(constants.HF_HUB_CACHE, "models--ann--maths", ".dem_hub", f"{weights.name}_sha256.json")
    assert json.loads(memory.read_text("utf-8"))["hash"] == weights.name
    assert hashed == []
