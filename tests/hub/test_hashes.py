"""Damaged files are named and not used, and a file that was checked once is not hashed again."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from dem_hub import DEMModel, DistributionVector
from dem_hub.cli.app import main
from dem_hub.errors import CheckpointError, ConfigError
from dem_hub.hub.hashes import digest, is_version, verify_downloads, verify_files
from tests.fake_hub.server import Hub
from tests.support.hub_cache import cached
from tests.support.published_repos import BASE, RECIPE, VECTOR, Published

TEXT = b"contents"
SHA256 = hashlib.sha256(TEXT).hexdigest()
GIT = hashlib.sha1(b"blob 8\0" + TEXT).hexdigest()


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the hash functions that ran; they still do their work."""
    found: list[str] = []

    def spy(name: str) -> None:
        original: Callable[..., Any] = getattr(hashlib, name)

        def wrapped(*arguments: Any, **options: Any) -> Any:
            found.append(name)
            return original(*arguments, **options)

        monkeypatch.setattr(hashlib, name, wrapped)

    spy("file_digest")
    spy("sha1")
    return found


def test_digest(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(TEXT)
    assert digest(tmp_path / "file") == SHA256


@pytest.mark.parametrize("name", [SHA256, GIT])
def test_a_verified_download_is_not_hashed_again(tmp_path: Path, hashed: list[str], name: str) -> None:
    path = cached(tmp_path, name)
    for _ in range(3):
        verify_downloads("org/base", [path])
    assert len(hashed) == 1


@pytest.mark.parametrize("name", [SHA256, GIT])
def test_a_damaged_download_is_named_and_taken_out(tmp_path: Path, name: str) -> None:
    path = cached(tmp_path, name, b"contentz")
    with pytest.raises(
        CheckpointError,
        match=rf"(?s)'org/base' were damaged.*'file' has hash \w+, the Hub's has {name[:16]}.*Try again",
    ):
        verify_downloads("org/base", [path])
    assert not path.is_symlink() and not list(tmp_path.rglob("blobs/*"))


def test_all_faults_of_a_folder(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).write_bytes(TEXT)
    with pytest.raises(CheckpointError) as caught:
        verify_files(tmp_path, {"a": SHA256, "b": "0" * 64, "c": SHA256})
    assert f"'b' has sha256 {SHA256[:16]}, recorded is {'0' * 16}" in str(caught.value)
    assert "'c' is missing" in str(caught.value)
    assert "'a'" not in str(caught.value)


def test_files_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"may not contain '\.\.'"):
        verify_files(tmp_path, {"../a": SHA256})


@pytest.mark.parametrize("content", ["contents", "path"])
def test_is_version(tmp_path: Path, content: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(TEXT)
    assert [is_version(path if content == "path" else content, name) for name in (SHA256, GIT, "0" * 64, "0" * 40, "None")] == [
        True, True, False, False, False,
    ]  # fmt: skip


# Over the Hub


@pytest.mark.parametrize(
    ("repo_id", "name"),
    [
        (VECTOR, "vector_model.safetensors"),
        (BASE, "model.safetensors"),
        (VECTOR, "vector_config.json"),
        (BASE, "config.json"),
        (RECIPE, "config.json"),
    ],
)
def test_corrupted_on_the_way(hub: Hub, published: Published, repo_id: str, name: str) -> None:
    with (
        hub.fault("GET", f"/{repo_id}/resolve/.*/{name}", corrupt=True) as fault,
        pytest.raises(CheckpointError) as caught,
    ):
        DEMModel.from_pretrained(RECIPE)
    assert fault.hits
    assert f"'{repo_id}'" in str(caught.value) and f"'{name}'" in str(caught.value)
    assert DEMModel.from_pretrained(RECIPE).dem.coefficients == {VECTOR: 0.5}


def test_a_second_load_hashes_nothing(hub: Hub, published: Published, hashed: list[str]) -> None:
    DistributionVector.from_pretrained(VECTOR)
    assert hashed
    hashed.clear()
    DistributionVector.from_pretrained(VECTOR)
    assert hashed == []


def test_a_file_that_rots_in_the_cache(hub: Hub, published: Published) -> None:
    DistributionVector.from_pretrained(VECTOR)
    blob = next(Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("vector_model.safetensors")).resolve()
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"vector_model\.safetensors"):
        DistributionVector.from_pretrained(VECTOR)
    DistributionVector.from_pretrained(VECTOR)


@pytest.mark.parametrize(("name", "suffix"), [(SHA256, "_sha256"), (GIT, "_git")])
def test_remembered_hashes_have_the_names_that_are_on_disks_already(tmp_path: Path, name: str, suffix: str) -> None:
    verify_downloads("org/base", [cached(tmp_path, name)])
    memories = list((tmp_path / "models--org--base" / ".dem_hub").iterdir())
    assert [memory.name for memory in memories] == [f"{name}{suffix}.json"]


def test_the_hashes_of_a_merge_when_asked(
    hub: Hub, published: Published, hashed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    DEMModel.from_pretrained(RECIPE)
    counts = []
    for verify in ("quick", "full"):
        hashed.clear()
        DEMModel.from_pretrained(RECIPE, verify=verify)  # type: ignore[arg-type]
        counts.append(len(hashed))
    assert counts[0] == 0
    assert counts[1] > 5
    for verify in ("quick", "full"):
        hashed.clear()
        assert main(["export", RECIPE, "-o", str(tmp_path / verify), "--rank", "2", "--verify", verify]) == 0
        counts.append(len(hashed))
    assert counts[3] > counts[2]
