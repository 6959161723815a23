"""The zeros in a stand-in are never read. What depends on values is judged once they are here: the same wherever they were."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch import Tensor

from dem_hub import DEMModel, DistributionVector
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.cli.app import main
from dem_hub.errors import AdapterError, BaseMismatchError, CheckpointError
from dem_hub.files.names import MODEL_FILES, VECTOR_FILES
from dem_hub.hub.download import Resolved
from dem_hub.hub.headers import resolve_headers
from dem_hub.hub.references import VectorSource
from dem_hub.input_statistics.statistics_file import InputStatistics
from dem_hub.vectors.statistics_beside import read_statistics, tied_statistics
from tests.fake_hub.server import Hub
from tests.support.published_repos import BASE, STORE, Published
from tests.support.tiny_models import Models, Zoo, load_tensors, make_adapter, reshard

PREFIX = "base_model.model."
NAME = "model.norm.weight"
ON_HUB = {"nothing": set(), "base": {"base"}, "vectors": {"vectors"}, "base and vectors": {"base", "vectors"}}


@pytest.fixture
def stand_in(published: Published, tmp_path: Path) -> Resolved:
    """The headers of `org/base`."""
    return resolve_headers(VectorSource(BASE), MODEL_FILES, scratch=tmp_path)


READS: dict[str, Callable[[Resolved], Any]] = {
    "tensor": lambda resolved: Checkpoint(resolved.folder).read(NAME),
    "slice": lambda resolved: Checkpoint(resolved.folder).read(NAME, (slice(0, 1),)),
    "one file": lambda resolved: Checkpoint(resolved.folder / "model.safetensors").read(NAME),
    "copy": lambda resolved: Checkpoint(resolved.folder).is_copy(NAME, NAME),
    "digests": lambda resolved: Base(resolved).digests,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_no_tensor_of_a_stand_in_can_be_read(stand_in: Resolved, read: Callable[[Resolved], Any]) -> None:
    assert stand_in.remote is not None
    with pytest.raises(CheckpointError, match=r"'model.safetensors' are still on the Hub.*`from_pretrained` downloads"):
        read(stand_in)


def test_headers_of_a_stand_in(stand_in: Resolved, llama: Models) -> None:
    lazy = Checkpoint(stand_in.folder).lazy(NAME)
    assert (lazy.get_shape(), lazy.get_dtype()) == ([32], "BF16")
    assert not Checkpoint(stand_in.folder).has_values
    assert Checkpoint(llama.base).has_values


def test_statistics_are_not_tied_to_zeros(published: Published) -> None:
    vector = DistributionVector.describe(f"{STORE}//code")
    assert vector.remote is not None
    with pytest.raises(CheckpointError, match="Only the headers"):
        read_statistics(vector)
    with pytest.raises(CheckpointError, match="Only the headers"):
        tied_statistics(InputStatistics((), 0, ""), vector)


def test_weights_without_a_hash_on_the_hub(
    hub: Hub, llama: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in of weights that are in git itself would be hashed in their place."""
    make_adapter(llama.base, tmp_path / "adapter", target_modules=["q_proj"], r=2)
    here = DistributionVector.from_pretrained(tmp_path / "adapter")
    monkeypatch.setattr("tests.fake_hub.writing.belongs_to_lfs", lambda path, size: False)
    _upload("ann/adapter", tmp_path / "adapter")
    resolved = resolve_headers(VectorSource("ann/adapter"), VECTOR_FILES, scratch=tmp_path)
    assert resolved.remote is None
    assert DistributionVector.describe("ann/adapter").sha256 == here.sha256


def _upload(repo_id: str, folder: Path) -> None:
    HfApi().create_repo(repo_id)
    HfApi().upload_folder(repo_id=repo_id, folder_path=folder, ignore_patterns=["README.md"])


def _place(
    what: str, folders: list[Path], on_hub: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """Return the names of folders, which are on the Hub and not in the cache if `on_hub` has what they are."""
    if what not in on_hub:
        return [str(folder) for folder in folders]
    names = [f"ann/{what}-{number}" for number in range(len(folders))]
    for name, folder in zip(names, folders, strict=True):
        _upload(name, folder)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    return names


def _edit(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_tensors(folder, "adapter_model")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "adapter_model.safetensors")


def _add(part: str) -> Callable[[dict[str, Tensor]], None]:
    """Return a change of the tensors whose names have a part."""

    def change(tensors: dict[str, Tensor]) -> None:
        chosen = [name for name in tensors if part in name]
        assert chosen
        for name in chosen:
            tensors[name] = tensors[name] + 1

    return change


def _write_twice(difference: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[f"{PREFIX}model.norm.modules_to_save.weight"] = tensors[f"{PREFIX}model.norm.weight"] + difference

    return change


ENDS = {"target_modules": ["embed_tokens", "lm_head"], "ensure_weight_tying": True, "r": 2}
SAVED_NORM = {"target_modules": ["q_proj"], "modules_to_save": ["model.norm"], "r": 2}
RESIZED = {"target_modules": ["q_proj"], "r": 2, "resize": 70}
UNTIED = "is one tensor with another embedding"
# Each adapter with the change of its file, and what refuses it.
ADAPTERS: dict[str, tuple[dict[str, Any], Callable[[dict[str, Tensor]], None], str]] = {
    "a LoRA of both ends": (ENDS, lambda tensors: None, ""),
    "one of two ends differs": (ENDS, _add("lm_head.lora_"), UNTIED),
    "written twice": (SAVED_NORM, _write_twice(0.0), ""),
    "written twice, and differs": (SAVED_NORM, _write_twice(1.0), "are one tensor, and differ in the file"),
    "resized": (RESIZED, lambda tensors: None, ""),
    "resized, and the output differs": (RESIZED, _add("lm_head"), UNTIED),
}


@pytest.mark.filterwarnings("ignore")  # PEFT, of tied embeddings
@pytest.mark.parametrize("on_hub", ON_HUB.values(), ids=ON_HUB)
@pytest.mark.parametrize(("options", "change", "refused"), ADAPTERS.values(), ids=ADAPTERS)
def test_adapters_are_judged_by_their_values(
    hub: Hub,
    zoo: Zoo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    on_hub: set[str],
    options: dict[str, Any],
    change: Callable[[dict[str, Tensor]], None],
    refused: str,
) -> None:
    folder = zoo.models("llama-tied", "float32").base
    make_adapter(folder, tmp_path / "adapter", **options)
    _edit(tmp_path / "adapter", change)
    (base,) = _place("base", [folder], on_hub, tmp_path, monkeypatch)
    (adapter,) = _place("vectors", [tmp_path / "adapter"], on_hub, tmp_path, monkeypatch)
    if refused:
        with pytest.raises(AdapterError, match=refused):
            DEMModel.from_pretrained(base, vectors={adapter: 0.5})
        return
    found = DEMModel.from_pretrained(base, vectors={adapter: 0.5}).state_dict()
    expected = DEMModel.from_pretrained(folder, vectors={str(tmp_path / "adapter"): 0.5}).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.filterwarnings("ignore")  # a model class of transformers has no such buffer
@pytest.mark.parametrize("on_hub", ON_HUB.values(), ids=ON_HUB)
@pytest.mark.parametrize("steps", [(7, 7), (7, 8)], ids=["agree", "disagree"])
def test_replacements_are_judged_by_their_values(
    hub: Hub, llama: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, on_hub: set[str], steps: tuple[int, int]
) -> None:
    def put(value: int) -> Callable[[dict[str, Tensor]], None]:
        return lambda tensors: tensors.update(steps=torch.tensor([value]))

    folder = reshard(llama.base, tmp_path / "base", change=put(0))
    folders = []
    for number, value in enumerate(steps):
        finetuned = reshard(llama.full if number else llama.low, tmp_path / f"finetuned-{number}", change=put(value))
        DistributionVector.extract(folder, finetuned, codec="dense").save_pretrained(tmp_path / f"vector-{number}")
        folders.append(tmp_path / f"vector-{number}")
    (base,) = _place("base", [folder], on_hub, tmp_path, monkeypatch)
    first, second = _place("vectors", folders, on_hub, tmp_path, monkeypatch)
    plan = ["merge", base, "--vector", f"{first}=0.5", "--vector", f"{second}=0.5", "-o", str(tmp_path / "merged")]
    # A plan downloads nothing, so it cannot know of vectors on the Hub that they disagree.
    assert main([*plan, "--dry-run"]) == (2 if steps[0] != steps[1] and "vectors" not in on_hub else 0)
    if steps[0] != steps[1]:
        names = "|".join(map(re.escape, (first, second)))
        with pytest.raises(BaseMismatchError, match=f"'steps' differs between '({names})' and '({names})'"):
            DEMModel.from_pretrained(base, vectors={first: 0.5, second: 0.5})
    else:
        DEMModel.from_pretrained(base, vectors={first: 0.5, second: 0.5})
