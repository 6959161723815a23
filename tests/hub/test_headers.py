"""Stand-ins of weights on the Hub have the real headers, no byte of data is asked for, and misfits are refused first."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi

from dem_hub import DEMModel, DistributionVector
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.cli.app import main
from dem_hub.errors import AdapterError, BaseMismatchError, CheckpointError, DiskSpaceError
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.headers import resolve_headers
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import open_recipe
from dem_hub.models.export import estimate_export, export
from dem_hub.models.planned import PlannedModel
from tests.fake_hub.server import Hub
from tests.support.published_repos import BASE, RECIPE, STORE, VECTOR, Published
from tests.support.tiny_models import Models, Zoo, edit_json, edit_vector, reshard

WEIGHTS = r"/resolve/.*\.safetensors$"
LARGE = 400_000  # elements of float32, so that a file is larger than what is asked for at first


def upload(repo_id: str, folder: Path) -> None:
    HfApi().create_repo(repo_id)
    HfApi().upload_folder(repo_id=repo_id, folder_path=folder)


def data_bytes(hub: Hub) -> int:
    """Bytes of weights that were asked for, beyond headers."""
    total = 0
    for seen in hub.requests("GET", WEIGHTS, origin="hub"):
        repo_id, _, rest = seen.path.lstrip("/").partition("/resolve/")
        data = hub.files(repo_id)[rest.partition("/")[2]]
        first, last = (
            map(int, re.fullmatch(r"bytes=(\d+)-(\d+)", seen.headers["range"]).groups())
            if "range" in seen.headers
            else (0, len(data))
        )  # type: ignore[union-attr]
        total += max(0, min(last, len(data)) - max(first, 8 + int.from_bytes(data[:8], "little")))
    return total


@pytest.fixture
def large(hub: Hub, published: Published, llama: Models, tmp_path: Path) -> str:
    """A base in two files, one of which is large."""

    def grow(tensors: dict[str, torch.Tensor]) -> None:
        tensors["model.embed_tokens.weight"] = torch.randn(
            LARGE // 32, 32, generator=torch.Generator().manual_seed(0)
        ).bfloat16()

    edit_json(reshard(llama.base, tmp_path / "large", 2, grow) / "config.json", vocab_size=LARGE // 32)
    upload("org/large", tmp_path / "large")
    hub.forget_requests()
    return "org/large"


def test_headers_are_those_of_the_files(hub: Hub, large: str, tmp_path: Path) -> None:
    stubs = resolve_headers(VectorSource(large), MODEL_FILES, scratch=tmp_path)
    seen = Checkpoint(stubs.folder)
    assert stubs.remote is not None
    assert {seen.headers.get("range") for seen in hub.requests("GET", WEIGHTS)} == {
        "bytes=0-100000",
        f"bytes=0-{_small(hub, large) - 1}",
    }
    whole = resolve(VectorSource(large), MODEL_FILES)
    assert stubs.remote.nbytes == sum(file.stat().st_size for file in whole.folder.glob("*.safetensors"))
    assert stubs.commit == whole.commit
    there = Checkpoint(whole.folder)
    assert {name: (info.dtype, info.shape, info.start, info.stop) for name, info in seen.items()} == {
        name: (info.dtype, info.shape, info.start, info.stop) for name, info in there.items()
    }
    again = resolve_headers(VectorSource(large), MODEL_FILES, scratch=tmp_path)
    assert (again.folder, again.remote) == (whole.folder, None), "what is here is not stubbed"


def _small(hub: Hub, repo_id: str) -> int:
    return min(len(data) for name, data in hub.files(repo_id).items() if name.endswith(".safetensors"))


def test_files_that_are_here_already(hub: Hub, large: str, tmp_path: Path) -> None:
    """After an interrupted download, the files that are there already are not counted again."""
    file = HfApi().hf_hub_download(large, "model-00001-of-00002.safetensors")
    hub.forget_requests()
    stubs = resolve_headers(VectorSource(large), MODEL_FILES, scratch=tmp_path)
    assert stubs.remote is not None
    assert list(stubs.remote.files) == ["model-00002-of-00002.safetensors"]
    assert Checkpoint(stubs.folder).keys() == Checkpoint(resolve(VectorSource(large), MODEL_FILES).folder).keys()
    assert (stubs.folder / "model-00001-of-00002.safetensors").samefile(file)


def test_headers_are_not_merged(hub: Hub, published: Published, tmp_path: Path) -> None:
    opened = open_recipe(VectorSource(RECIPE), headers_only=True)
    with pytest.raises(AssertionError, match="'org/base.*' was opened for its headers only"):
        export(PlannedModel.of(opened), tmp_path / "merged")


def test_a_header_longer_than_what_is_asked_for_at_first(hub: Hub, published: Published, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "many").mkdir()
    save_file(
        {f"{'long' * 30}.{number}": torch.zeros(1) for number in range(1000)}, tmp_path / "many" / "model.safetensors"
    )
    upload("org/many", tmp_path / "many")
    stubs = resolve_headers(VectorSource("org/many"), MODEL_FILES, scratch=tmp_path)
    assert len(Checkpoint(stubs.folder)) == 1000


# A dry run


def test_a_dry_run_fetches_no_weights(
    hub: Hub, large: str, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = resolve(VectorSource(large), MODEL_FILES)

    def change(tensors: dict[str, torch.Tensor]) -> None:
        for tensor in tensors.values():
            tensor.add_(0.01)

    DistributionVector.extract(large, reshard(base.folder, tmp_path / "full", 1, change), codec="dense").push_to_hub(
        "ann/large"
    )
    expected = sum(
        len(data)
        for repo in (large, "ann/large")
        for name, data in hub.files(repo).items()
        if name.endswith(".safetensors")
    )
    _forget(hub)
    assert main(["merge", large, "--vector", "ann/large=0.5", "-o", str(tmp_path / "merged"), "--dry-run"]) == 0
    told = capsys.readouterr().err
    assert f"20 of 20 tensors change; downloads {expected / 1e6:.1f} MB, reads " in told
    assert "of memory beyond the libraries, and 1 s of computing" in told
    ranges = [seen.headers.get("range") for seen in hub.requests("GET", WEIGHTS)]
    assert ranges
    assert all(found is not None and found.startswith("bytes=0-") for found in ranges)
    assert data_bytes(hub) <= 3 * 100_001, "no more than what comes with a header"
    assert not list((tmp_path / "empty").rglob("*.safetensors"))
    assert not (tmp_path / "merged").exists()


def _forget(hub: Hub) -> None:
    """An empty cache."""
    import shutil

    import huggingface_hub

    shutil.rmtree(huggingface_hub.constants.HF_HUB_CACHE, ignore_errors=True)
    hub.forget_requests()


def test_the_plan_from_headers_is_the_plan(hub: Hub, published: Published, tmp_path: Path) -> None:
    from dataclasses import replace

    first = estimate_export(PlannedModel.of(open_recipe(VectorSource(RECIPE), headers_only=True)), tmp_path / "merged")
    there = estimate_export(PlannedModel.of(open_recipe(VectorSource(RECIPE))), tmp_path / "merged")
    assert first.downloads == sum(
        len(hub.files(repo)[name]) for repo, name in ((BASE, "model.safetensors"), (VECTOR, "vector_model.safetensors"))
    )
    assert replace(first, downloads=0, free=0, seconds=0) == replace(there, free=0, seconds=0)


def test_a_merge_is_planned_before_it_downloads(hub: Hub, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    import shutil

    usage = shutil.disk_usage(tmp_path)
    needed = len(hub.files(BASE)["model.safetensors"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    assert main(["merge", RECIPE, "-o", str(tmp_path / "merged")]) == 2
    assert re.search(r"takes .* and .* kB of downloads in '.*empty', and .* are free there", capsys.readouterr().err)
    assert [seen for seen in hub.requests("GET", WEIGHTS) if "range" not in seen.headers] == []
    monkeypatch.undo()


def test_the_cache_on_another_disk(published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    import dem_hub.models.estimate

    opened = open_recipe(VectorSource(RECIPE), headers_only=True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda path: usage._replace(free=10 if path == Path("/proc") else usage.free)
    )
    monkeypatch.setattr(
        dem_hub.hub.remote.RemoteWeights, "cache", property(lambda self: Path("/proc"))
    )  # another device
    with pytest.raises(DiskSpaceError, match="come down to '/proc', and 10 B are free there"):
        estimate_export(PlannedModel.of(opened), tmp_path / "merged")


# Refused before weights come down: nothing but headers, and of a base a few kB, were asked for.

Wrong = tuple[dict[str, float], type[Exception], str]


def _resized(folder: Path) -> None:
    records = json.loads((folder / "vector_config.json").read_text())["tensors"]
    records["model.norm.weight"]["shape"] = [33]
    edit_vector(folder, tensors=records)


def _unknown(folder: Path) -> None:
    records = json.loads((folder / "vector_config.json").read_text())["tensors"]
    records["model.nothing"] = records.pop("model.norm.weight")
    edit_vector(folder, tensors=records)


@pytest.fixture
def wrong(hub: Hub, published: Published, llama: Models, zoo: Zoo, tmp_path: Path) -> dict[str, Wrong]:
    """Vectors on the Hub that do not fit `org/base`, each with the message that refuses it."""
    for name, change in (("resized", _resized), ("unknown", _unknown)):
        DistributionVector.from_pretrained(published.vector).save_pretrained(tmp_path / name)
        change(tmp_path / name)
        DistributionVector.from_pretrained(tmp_path / name).push_to_hub(f"ann/{name}", base_model=BASE)
    upload("org/other", llama.full)
    DistributionVector.extract(llama.full, llama.base, codec="dense").push_to_hub("ann/other", base_model="org/other")
    DistributionVector.extract(llama.low, llama.base, codec="lowrank", rank=2).push_to_hub(
        "ann/matrices", base_model="org/other"
    )
    adapter = DistributionVector.from_pretrained(zoo.adapter("gpt2"))
    adapter.push_to_hub("ann/lora", base_model=BASE)
    HfApi().upload_file(
        repo_id=STORE,
        path_in_repo="code/adapter_model.safetensors",
        path_or_fileobj=hub.files(VECTOR)["vector_model.safetensors"],
    )
    _forget(hub)
    return {
        "shape": ({"ann/resized": 0.5}, BaseMismatchError, r"'model.norm.weight' is \[33\] in the vector and \[32\] in this base"),
        "name": ({"ann/unknown": 0.5}, BaseMismatchError, r"'model.nothing' \[32\] is not in this base"),
        "base": ({"ann/other": 0.5}, BaseMismatchError, r"made from 'org/other@.*still on the Hub.*first tensor that differs is 'model"),
        "base, of matrices": ({"ann/matrices": 0.5}, BaseMismatchError, "made from 'org/other@.*still on the Hub"),
        "adapter": ({"ann/lora": 0.5}, AdapterError, "the base has no single weight for a module 'transformer.h.0.attn.c_attn'"),
        "altered": ({f"{STORE}//code": 0.5}, CheckpointError, "'adapter_model.safetensors' has sha256 .*, recorded is"),
        "several": ({"ann/resized": 0.1, "ann/lora": 0.2, VECTOR: 0.3, "ann/other": 0.4}, BaseMismatchError, r"(?s)3 of 4 vectors cannot.*\[33\].*c_attn.*org/other"),
    }  # fmt: skip


@pytest.mark.parametrize("way", ["load", "merge", "dry run"])
@pytest.mark.parametrize("what", ["shape", "name", "base", "base, of matrices", "adapter", "altered", "several"])
def test_refused_first(
    hub: Hub, wrong: dict[str, Wrong], tmp_path: Path, capsys: pytest.CaptureFixture[str], way: str, what: str
) -> None:
    vectors, error, message = wrong[what]
    if way == "load":
        with pytest.raises(error, match=message):
            DEMModel.from_pretrained(BASE, vectors=vectors)
    else:
        arguments = [word for name, value in vectors.items() for word in ("--vector", f"{name}={value}")]
        assert (
            main(
                [
                    "merge",
                    BASE,
                    *arguments,
                    "-o",
                    str(tmp_path / "merged"),
                    *(["--dry-run"] if way == "dry run" else []),
                ]
            )
            == 2
        )
        assert re.search(message, capsys.readouterr().err)
    assert [seen for seen in hub.requests("GET", WEIGHTS) if "range" not in seen.headers] == [], "no weights"
    assert not list((tmp_path / "empty").rglob("*.safetensors"))


def test_another_base_by_hand(hub: Hub, published: Published, llama: Models) -> None:
    upload("org/other", llama.full)
    there = DEMModel.from_pretrained("org/other", vectors={VECTOR: 0.5}, allow_base_mismatch=True)
    here = DEMModel.from_pretrained(llama.full, vectors={str(published.vector): 0.5}, allow_base_mismatch=True)
    assert all(a.equal(b) for a, b in zip(there.parameters(), here.parameters(), strict=True))
