"""A merged model pushed file by file: the same repository as from a folder, and never a part of a model."""

import os
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

import dem_hub.checkpoints.writer
from dem_hub import DEMModel
from dem_hub.errors import CheckpointError, DiskSpaceError, HubError, PushConflictError
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import open_base_and_vectors, open_recipe
from dem_hub.models.export import export
from dem_hub.models.planned import PlannedModel
from dem_hub.models.upload import estimate_push, push_export, push_merged
from tests.fake_hub.server import Hub
from tests.support.published_repos import BASE, RECIPE, VECTOR, Published
from tests.support.tiny_models import Models

SIZE = "8KB"  # six files


@pytest.fixture
def model(published: Published) -> PlannedModel:
    return PlannedModel.of(open_recipe(VectorSource(RECIPE)), max_shard_size=SIZE)


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary folders go: a place of the user's own in that of the system."""
    import tempfile

    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder / f"dem_hub-{os.getuid()}"


def weights(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in files.items() if name.endswith(".safetensors")}


def test_the_files_that_a_folder_gives(hub: Hub, model: PlannedModel, tmp_path: Path) -> None:
    push_merged(model, "ann/one")
    export(PlannedModel.of(model.opened, max_shard_size=SIZE), tmp_path / "merged")
    push_export(tmp_path / "merged", "ann/two")
    one, two = hub.files("ann/one"), hub.files("ann/two")
    assert one.keys() == two.keys()
    assert {name for name in one if one[name] != two[name]} == {"README.md"}
    assert one["README.md"].replace(b"one", b"two") == two["README.md"]
    assert len(hub.store.repos["models", "ann/one"].commits) == 2, "the first, which the Hub makes, and ours"


def test_one_file_at_a_time(hub: Hub, model: PlannedModel, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than one lies on the disk, and each is on the Hub before the next is begun."""
    seen, real = [], PlannedModel.write

    def watched(self: PlannedModel, *where: Any) -> Any:
        seen.append((len(list(scratch.rglob("*.safetensors"))), len(hub.requests("PUT", "/upload/"))))
        return real(self, *where)

    monkeypatch.setattr(PlannedModel, "write", watched)
    push_merged(model, "ann/one")
    assert seen == [(0, done) for done in range(6)]
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("step", ["PUT /upload/", "POST /objects/batch", "POST /commit/"])
def test_a_fault_and_a_second_try(hub: Hub, model: PlannedModel, scratch: Path, sleeps: list[float], step: str) -> None:
    method, pattern = step.split()
    after = 0 if "commit" in pattern else 3
    with hub.fault(method, pattern, status=503, after=after) as fault, pytest.raises(HubError, match="Push again"):
        push_merged(model, "ann/one")
    assert fault.hits
    assert hub.files("ann/one") == {}, "no commit"
    assert list(scratch.iterdir()) == []
    there = len(hub.requests("PUT", "/upload/")) if "commit" in pattern else 3
    hub.forget_requests()
    push_merged(model, "ann/one")
    assert len(hub.requests("PUT", "/upload/")) == 6 - there, "what was there is not sent again"
    assert set(weights(hub.files("ann/one"))) == {shard.name for shard in model.shards}


def test_an_error_of_the_merge(hub: Hub, published: Published) -> None:
    opened = open_base_and_vectors(VectorSource(BASE), {VECTOR: 1e38})
    with pytest.raises(CheckpointError, match="beyond the range"):
        push_merged(PlannedModel.of(opened, dtype="float16"), "ann/one")
    assert hub.files("ann/one") == {}


def test_over_another_model(hub: Hub, model: PlannedModel) -> None:
    """Weights in other files go; what a person added stays."""
    api = HfApi()
    push_merged(PlannedModel.of(model.opened), "ann/one")
    api.upload_file(repo_id="ann/one", path_in_repo="notes.txt", path_or_fileobj=b"mine")
    push_merged(model, "ann/one")
    files = hub.files("ann/one")
    assert "model.safetensors" not in files
    assert files["notes.txt"] == b"mine"


@pytest.mark.parametrize("theirs", ["notes.txt", "model-00002-of-00006.safetensors"])
def test_somebody_was_quicker(hub: Hub, model: PlannedModel, monkeypatch: pytest.MonkeyPatch, theirs: str) -> None:
    """Nothing is merged or sent twice; where they changed the same files, nothing is pushed."""
    real, raced = dem_hub.models.upload.upload, []

    def racing(*arguments: Any) -> Any:
        if not raced:
            HfApi().upload_file(repo_id="ann/one", path_in_repo=theirs, path_or_fileobj=b"theirs")
        raced.append(arguments[1])
        return real(*arguments)

    monkeypatch.setattr("dem_hub.models.upload.upload", racing)
    if theirs == "notes.txt":
        push_merged(model, "ann/one")
        assert set(weights(hub.files("ann/one"))) == {shard.name for shard in model.shards}
        assert hub.files("ann/one")[theirs] == b"theirs"
    else:
        with pytest.raises(PushConflictError, match="the same files changed"):
            push_merged(model, "ann/one")
        assert weights(hub.files("ann/one")) == {theirs: b"theirs"}
    assert raced == [shard.name for shard in model.shards]


def test_pull_request_and_a_dtype(hub: Hub, model: PlannedModel) -> None:
    from transformers import AutoModelForCausalLM

    info = push_merged(PlannedModel.of(model.opened, dtype="float32", max_shard_size=SIZE), "ann/one", create_pr=True)
    assert hub.files("ann/one") == {}
    found = AutoModelForCausalLM.from_pretrained("ann/one", revision=info.pr_revision)
    expected = DEMModel.from_pretrained(RECIPE, dtype="float32")
    assert all(a.equal(b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))


def test_files_that_the_repository_keeps_as_small_ones(
    hub: Hub, model: PlannedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.fake_hub.writing.belongs_to_lfs", lambda path, size: False)
    push_merged(model, "ann/one")
    assert set(weights(hub.files("ann/one"))) == {shard.name for shard in model.shards}
    assert hub.requests("PUT", "/upload/") == []


def test_what_is_of_this_machine_stays_behind(hub: Hub, published: Published, llama: Models) -> None:
    model = PlannedModel.of(open_base_and_vectors(VectorSource(str(llama.base)), {str(published.vector): 0.5}))
    with pytest.warns(UserWarning, match=r"dem_config.json names folders of this machine .*vector"):
        push_merged(model, "ann/one")
    files = hub.files("ann/one")
    assert "dem_config.json" not in files
    assert str(llama.base.parent).encode() not in b"".join(files.values())


def test_room_for_one_file(model: PlannedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import shutil

    largest, usage = max(shard.nbytes for shard in model.shards), shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=largest))
    assert estimate_push(model).writes == sum(shard.nbytes for shard in model.shards) > largest
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=largest - 1))
    with pytest.raises(DiskSpaceError, match=r"takes [\d.]+ kB in "):
        estimate_push(model)
