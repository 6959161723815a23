"""Few requests go to the Hub: none once everything is cached, one for a repository named by a branch, none in vain."""

import json
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import HfApi

from dem_hub import DEMModel, DistributionVector, VectorStore
from dem_hub.cli.app import main
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from tests.fake_hub.server import Hub
from tests.support.processes import run
from tests.support.published_repos import BASE, RECIPE, STORE, VECTOR, Published
from tests.support.tiny_models import Models

LOAD = """
from dem_hub import DEMModel
from transformers import AutoModelForCausalLM, AutoTokenizer
first, second = (cls.from_pretrained('ann/dem') for cls in (DEMModel, AutoModelForCausalLM))
assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
print(type(second).__name__, first.dem.coefficients, AutoTokenizer.from_pretrained('ann/dem')('w1 w2')['input_ids'])
"""


def files_of(hub: Hub, repo_id: str) -> set[str]:
    """Return the paths of a repository's files that were downloaded."""
    return {
        seen.path.partition("/resolve/")[2].partition("/")[2] for seen in hub.requests("GET", f"/{repo_id}/resolve/")
    }


def by_repository(hub: Hub) -> dict[str, int]:
    """Return the number of requests for each repository."""
    counts: dict[str, int] = {}
    for seen in hub.requests():
        found = re.search(rf"({BASE}|{VECTOR}|{STORE}|{RECIPE})(/|$)", seen.path)
        name = found[1] if found else seen.path
        counts[name] = counts.get(name, 0) + 1
    return counts


def test_offline_after_one_load(hub: Hub, published: Published, tmp_path: Path) -> None:
    """The second load is in a process that starts offline."""
    online = run(LOAD, environment=hub.environment(tmp_path / "home"))
    assert online.returncode == 0, online.stderr[-3000:]
    assert online.stdout.startswith("LlamaForCausalLM {'ann/maths': 0.5}")
    hub.forget_requests()
    environment = hub.environment(tmp_path / "home", HF_HUB_OFFLINE="1")
    done = subprocess.run([sys.executable, "-c", LOAD], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout == online.stdout
    assert hub.requests() == []


def test_local_files_only(hub: Hub, published: Published) -> None:
    for options in ({}, {"local_files_only": True}):
        hub.forget_requests()
        DEMModel.from_pretrained(RECIPE, **options)
        DistributionVector.from_pretrained(VECTOR, revision=published.recipe.vectors[0].commit, **options)  # type: ignore[arg-type]
        VectorStore.from_pretrained(STORE, **options)["code"]  # type: ignore[arg-type]
    assert hub.requests() == []


def test_local_files_only_of_what_is_not_here(hub: Hub, published: Published) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        DEMModel.from_pretrained(RECIPE, local_files_only=True)
    assert RECIPE in " ".join(caught.value.__notes__)
    assert hub.requests() == []


def test_another_cache(hub: Hub, published: Published, tmp_path: Path) -> None:
    """`cache_dir` is used for everything that a load needs."""
    DEMModel.from_pretrained(RECIPE, cache_dir=tmp_path / "mine")
    assert not Path(huggingface_hub.constants.HF_HUB_CACHE).exists()
    hub.forget_requests()
    DEMModel.from_pretrained(RECIPE, cache_dir=tmp_path / "mine", local_files_only=True)
    assert hub.requests() == []


def test_a_cache_that_moves_on(hub: Hub, published: Published) -> None:
    """A newer base or vector, fetched by its branch, does not take away the older one that the recipe pins."""
    DEMModel.from_pretrained(RECIPE)
    for repo_id in (BASE, VECTOR):
        HfApi().upload_file(repo_id=repo_id, path_in_repo="notes.txt", path_or_fileobj=b"newer")
        HfApi().snapshot_download(repo_id)
    hub.forget_requests()
    DEMModel.from_pretrained(RECIPE, local_files_only=True)
    assert hub.requests() == []


def test_warm_and_online(hub: Hub, published: Published) -> None:
    """The recipe's own name may have moved, which is one request; the base and the vectors are pinned, which is none."""
    DEMModel.from_pretrained(RECIPE)
    hub.forget_requests()
    DEMModel.from_pretrained(RECIPE)
    assert by_repository(hub) == {RECIPE: 1}


def test_warm_and_pinned(hub: Hub, published: Published) -> None:
    commit = HfApi().model_info(RECIPE).sha
    DEMModel.from_pretrained(RECIPE, revision=commit)
    hub.forget_requests()
    DEMModel.from_pretrained(RECIPE, revision=commit)
    assert hub.requests() == []


def test_warm_and_by_names(hub: Hub, published: Published) -> None:
    """A base and vectors by their names: one request each."""
    for _ in range(2):
        hub.forget_requests()
        DEMModel.from_pretrained(BASE, vectors={VECTOR: 0.5, f"{STORE}//code": 0.5})
    assert by_repository(hub) == {BASE: 1, VECTOR: 1, STORE: 1}


def test_warm_through_the_auto_class(hub: Hub, published: Published) -> None:
    """transformers resolves the name, and hands on the commit; nothing more is asked."""
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_pretrained(RECIPE)
    hub.forget_requests()
    AutoModelForCausalLM.from_pretrained(RECIPE)
    assert by_repository(hub) == {RECIPE: 1}


# Only what is needed comes down.


def test_header_of_a_vector(hub: Hub, published: Published, capsys: pytest.CaptureFixture[str]) -> None:
    """Its config and the first bytes of its tensors' file, asked for as a range. (The client takes 100 kB at once.)"""
    weights = torch.zeros(400_000, dtype=torch.float32)
    large = Path("large")
    _large_vector(published, large, weights)
    HfApi().upload_folder(repo_id="ann/large", folder_path=large)
    hub.forget_requests()
    assert main(["info", "ann/large", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["items"][0]["tensors"]
    assert files_of(hub, "ann/large") == {"vector_config.json", "vector_model.safetensors"}
    tensors = hub.requests("GET", r"\.safetensors")
    assert [seen.headers.get("range") for seen in tensors] == ["bytes=0-100000"] * len(tensors)
    assert [seen.status for seen in tensors if seen.origin == "cdn"] == [206]
    assert len(hub.requests("GET", "/api/models/ann/large(/revision/main)?$")) == 1, "its name is looked up once"


def _large_vector(published: Published, folder: Path, weights: torch.Tensor) -> None:
    """A vector with a tensor of more than a megabyte."""
    from safetensors.torch import load_file, save_file

    from tests.support.tiny_models import edit_vector

    DistributionVector.from_pretrained(published.vector).save_pretrained(folder)
    tensors = load_file(folder / "vector_model.safetensors")
    name = next(name for name in tensors if name.endswith("::dense"))
    save_file({**tensors, name: weights}, folder / "vector_model.safetensors")
    records = json.loads((folder / "vector_config.json").read_text())["tensors"]
    records[name.removesuffix("::dense")]["shape"] = list(weights.shape)
    edit_vector(folder, tensors=records)
    HfApi().create_repo("ann/large")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.fp16.safetensors", "consolidated.safetensors", "original/model.safetensors",
                                  "onnx/config.json", "tf_model.h5", "flax_model.msgpack", "README.md", "model.gguf"])  # fmt: skip
def test_nothing_beside_the_base(hub: Hub, published: Published, llama: Models, name: str) -> None:
    data = {"README.md": b"---\nlicense: mit\n---\n# Base\n"}.get(name, b"x" * 100)
    HfApi().upload_file(repo_id=BASE, path_in_repo=name, path_or_fileobj=data)
    resolve(VectorSource(BASE), MODEL_FILES)
    assert files_of(hub, BASE) == {path.name for path in llama.base.iterdir()}


def test_one_member_of_a_store(hub: Hub, published: Published) -> None:
    VectorStore.from_pretrained(STORE)["code"]
    expected = {path for path in hub.files(STORE) if path.startswith("code/")} | {"vector_store.json"}
    assert files_of(hub, STORE) == expected - {"code/README.md"}


def test_index_of_a_store(hub: Hub, published: Published) -> None:
    assert list(VectorStore.from_pretrained(STORE)) == ["code", "maths"]
    assert files_of(hub, STORE) == {"vector_store.json"}
