"""Files of the Hub stay in their folder, are never pickled, and run no code; `contracts/test_refusals` is for folders."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi

from dem_hub import DEMConfig, DEMModel, DistributionVector, VectorStore
from dem_hub.errors import CheckpointError, ConfigError, DemHubError
from tests.fake_hub.server import Hub
from tests.support.published_repos import BASE, RECIPE, STORE, VECTOR, Published
from tests.support.tiny_models import Models, edit_json


def upload(repo_id: str, files: dict[str, Any]) -> None:
    """Put files on the Hub without dem_hub, as an attacker would."""
    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    for name, content in files.items():
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        api.upload_file(repo_id=repo_id, path_in_repo=name, path_or_fileobj=data)


def on_hub(hub: Hub, repo_id: str, name: str) -> dict[str, Any]:
    return json.loads(hub.files(repo_id)[name])  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "name", ["../../../../secret.safetensors", "/etc/secret.safetensors", "..\\secret.safetensors"]
)
def test_index_of_a_base(hub: Hub, published: Published, llama: Models, name: str) -> None:
    files = {"config.json": (llama.base / "config.json").read_bytes(), "model-00001-of-00001.safetensors": b"x" * 100}
    upload("ann/bad", {**files, "model.safetensors.index.json": {"weight_map": {"lm_head.weight": name}}})
    with pytest.raises(ConfigError) as caught:
        DEMModel.from_pretrained("ann/bad", vectors={VECTOR: 0.5})
    assert f"is '{name}'; names must be relative" in str(caught.value)


@pytest.mark.parametrize("subfolder", ["../maths", "a/../../maths", "/etc", "..\\maths"])
@pytest.mark.parametrize("repo_id", [".", VECTOR])
def test_subfolders_of_a_recipe(hub: Hub, published: Published, repo_id: str, subfolder: str) -> None:
    recipe = on_hub(hub, RECIPE, "config.json")
    upload(
        "ann/bad",
        {"config.json": {**recipe, "vectors": [{"repo_id": repo_id, "coefficient": 1.0, "subfolder": subfolder}]}},
    )
    with pytest.raises(ConfigError) as caught:
        DEMModel.from_pretrained("ann/bad")
    assert f"is '{subfolder}'; names must be relative" in str(caught.value)


@pytest.mark.parametrize("where", ["base", "vector"])
@pytest.mark.parametrize("key", ["path", "repo_id"])
@pytest.mark.parametrize("load", [DEMConfig.from_pretrained, DEMModel.from_pretrained], ids=["read", "loaded"])
def test_recipe_that_names_a_local_path(
    hub: Hub, published: Published, llama: Models, where: str, key: str, load: Callable[[str], object]
) -> None:
    recipe = on_hub(hub, RECIPE, "config.json")
    if where == "base":
        recipe["base"] = {key: str(llama.base)}
    else:
        recipe["vectors"] = [{key: str(published.vector), "coefficient": 1.0}]
    upload("ann/bad", {"config.json": recipe})
    path = llama.base if where == "base" else published.vector
    with pytest.raises(ConfigError, match=f"comes from the Hub and names the local path '{path}'"):
        load("ann/bad")


@pytest.mark.parametrize("name", ["../maths", "/etc", "a/../../maths", "..\\maths"])
def test_members_of_a_store(hub: Hub, published: Published, name: str) -> None:
    index = on_hub(hub, STORE, "vector_store.json")
    upload("ann/bad", {"vector_store.json": {**index, "vectors": {name: index["vectors"]["maths"]}}})
    with pytest.raises(ConfigError) as caught:
        VectorStore.from_pretrained("ann/bad")
    assert f"is '{name}'; names must be relative" in str(caught.value)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickled_base(hub: Hub, published: Published, llama: Models, name: str) -> None:
    upload("ann/pickled", {"config.json": (llama.base / "config.json").read_bytes(), name: b"pickled" * 10})
    for load in (
        lambda: DEMModel.from_pretrained("ann/pickled", vectors={VECTOR: 0.5}),
        lambda: DistributionVector.extract("ann/pickled", llama.full),
        lambda: DistributionVector.extract(llama.base, "ann/pickled"),
    ):
        with pytest.raises(CheckpointError, match=rf"'ann/pickled' has only pickled weights \({name}\)") as caught:
            load()
        assert "save_pretrained(folder) writes safetensors" in str(caught.value)
    assert hub.requests("GET", f"/resolve/.*{name}") == [], "pickles do not even come down"


def test_pickled_adapter(hub: Hub, published: Published) -> None:
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": BASE,
        "r": 2,
        "lora_alpha": 2,
        "target_modules": ["q_proj"],
    }
    upload("ann/pickled", {"adapter_config.json": config, "adapter_model.bin": b"pickled" * 10})
    with pytest.raises(CheckpointError, match=r"only pickled weights \(adapter_model\.bin\).*PeftModel"):
        DistributionVector.from_pretrained("ann/pickled")
    assert hub.requests("GET", r"/resolve/.*\.bin") == []


@pytest.mark.parametrize("trust", [False, True])
def test_recipe_that_asks_for_code(hub: Hub, published: Published, trust: bool) -> None:
    upload("ann/bad", {"config.json": {**on_hub(hub, RECIPE, "config.json"), "trust_remote_code": True}})
    with pytest.raises(ConfigError, match="unknown key 'trust_remote_code'"):
        DEMModel.from_pretrained("ann/bad", trust_remote_code=trust)


def test_code_in_a_base_does_not_run(hub: Hub, published: Published, llama: Models, tmp_path: Path) -> None:
    """A base with remote code, whose config claims that it may be trusted: only the caller can say so."""
    ran = tmp_path / "ran"
    folder = tmp_path / "base"
    folder.mkdir()
    for path in llama.base.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "code.py").write_text(
        f"open({str(ran)!r}, 'w')\nfrom transformers import LlamaConfig\nclass Config(LlamaConfig):\n    model_type = 'mine'\n"
    )
    edit_json(folder / "config.json", model_type="mine", auto_map={"AutoConfig": "code.Config"}, trust_remote_code=True)
    HfApi().create_repo("ann/coded")
    HfApi().upload_folder(repo_id="ann/coded", folder_path=folder)
    with pytest.raises(ValueError, match="trust_remote_code=True"):
        DEMModel.from_pretrained("ann/coded", vectors={VECTOR: 0.5}, allow_base_mismatch=True)
    assert not ran.exists()


def test_vector_of_arbitrary_bytes(hub: Hub, published: Published) -> None:
    """The download is complete, but the config of the vector records another sha256."""
    config = hub.files(VECTOR)["vector_config.json"]
    upload("ann/bad", {"vector_config.json": config, "vector_model.safetensors": torch.zeros(64).numpy().tobytes()})
    with pytest.raises(DemHubError, match=r"'vector_model\.safetensors' has sha256"):
        DistributionVector.from_pretrained("ann/bad")
