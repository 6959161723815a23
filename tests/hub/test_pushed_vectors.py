"""Vectors and stores on the Hub and back, against the tests' own Hub and through the unmodified client."""

import json
import re
import shutil
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError

from dem_hub import DEMModel, DistributionVector, VectorStore
from dem_hub.errors import BaseMismatchError, ConfigError, VectorNotFoundError
from tests.fake_hub.server import Hub
from tests.hub.round_trip import assert_same, run_code, saved
from tests.support.tiny_models import Models, Zoo

BASE = "org/base"


# Vectors


def test_a_vector_there_and_back(
    hub: Hub, base: str, llama: Models, vector: DistributionVector, tmp_path: Path
) -> None:
    info = vector.push_to_hub("ann/maths", base_model=base, commit_message="Maths")
    assert info.repo_url.repo_id == "ann/maths"
    assert set(hub.files("ann/maths")) == {"vector_config.json", "vector_model.safetensors", "README.md"}
    back = DistributionVector.from_pretrained("ann/maths")
    assert back.commit == info.oid
    assert back.config is not None
    assert (back.base.repo_id, back.base.commit) == (BASE, HfApi().model_info(BASE).sha)
    assert str(llama.base) not in "".join(text.decode("latin-1") for text in hub.files("ann/maths").values())
    model = DEMModel.from_pretrained(BASE, vectors={"ann/maths": 0.5})
    assert_same(model, DEMModel.from_pretrained(llama.base, vectors={saved(vector, tmp_path): 0.5}))


def test_a_fine_tune_in_a_folder_is_no_repository(hub: Hub, base: str, llama: Models, tmp_path: Path) -> None:
    """Its relative path has the form of a Hub id. The tests' working directory is `tmp_path`."""
    shutil.copytree(llama.full, tmp_path / "runs" / "maths")
    vector = DistributionVector.extract(base, "runs/maths", codec="dense")
    assert vector.config is not None
    assert vector.config.finetuned == str(tmp_path / "runs" / "maths")
    vector.push_to_hub("ann/maths")
    files = hub.files("ann/maths")
    assert json.loads(files["vector_config.json"])["finetuned"] is None
    assert b"runs/maths" not in files["README.md"]


def test_the_base_must_have_a_name_that_others_know(hub: Hub, vector: DistributionVector, llama: Models) -> None:
    with pytest.raises(
        ConfigError,
        match=re.escape(f"'{llama.base}', a folder of this machine, which nobody else has") + ".*base_model=",
    ):
        vector.push_to_hub("ann/maths")
    assert hub.requests("POST") == []


@pytest.mark.parametrize("codec", ["lowrank", "dense"])
def test_the_card(hub: Hub, base: str, llama: Models, codec: str) -> None:
    DistributionVector.extract(BASE, llama.low, codec=codec).push_to_hub("ann/maths")
    card = ModelCard(hub.files("ann/maths")["README.md"].decode())
    card.validate()
    data = card.data.to_dict()
    assert data["library_name"] == "dem-hub"
    assert (data["base_model"], data["base_model_relation"], data["license"]) == ([BASE], "adapter", "apache-2.0")
    assert {"dem", "distribution-edited-model", "dem-vector"} <= set(data["tags"])
    run_code(card)


def test_what_a_person_wrote_stays(hub: Hub, base: str, vector: DistributionVector, api: HfApi) -> None:
    vector.push_to_hub("ann/maths", base_model=base)
    text = hub.files("ann/maths")["README.md"].decode()
    edited = (
        text.replace("license: apache-2.0", "license: mit\nlanguage: en").replace(
            "# maths", "# My maths vector\n\nBy me."
        )
        + "\nCite me.\n"
    )
    api.upload_file(repo_id="ann/maths", path_in_repo="README.md", path_or_fileobj=edited.encode())
    vector.push_to_hub("ann/maths", base_model=base)
    card = ModelCard(hub.files("ann/maths")["README.md"].decode())
    assert card.text.count("A distribution vector") == 1
    assert all(part in card.text for part in ("# My maths vector", "By me.", "Cite me."))
    assert (card.data.license, card.data.language) == ("mit", "en")


def test_an_older_vector_in_the_same_place_goes(
    hub: Hub, base: str, vector: DistributionVector, llama: Models, api: HfApi
) -> None:
    DistributionVector.extract(BASE, llama.low, codec="lowrank").push_to_hub("ann/maths")
    api.upload_file(repo_id="ann/maths", path_in_repo="notes/vector_model_notes.txt", path_or_fileobj=b"keep")
    assert "adapter_model.safetensors" in hub.files("ann/maths")
    vector.push_to_hub("ann/maths", base_model=base)
    assert set(hub.files("ann/maths")) == {
        "vector_config.json", "vector_model.safetensors", "README.md", "notes/vector_model_notes.txt",
    }  # fmt: skip


def test_a_peft_adapter(hub: Hub, base: str, zoo: Zoo, tmp_path: Path) -> None:
    folder = zoo.adapter("llama-tied", "bfloat16")
    DistributionVector.from_pretrained(folder).push_to_hub("ann/lora", base_model=base)
    config = json.loads(hub.files("ann/lora")["adapter_config.json"])
    assert config["base_model_name_or_path"] == BASE
    assert ModelCard(hub.files("ann/lora")["README.md"].decode()).data.library_name == "peft"
    assert_same(
        DEMModel.from_pretrained(BASE, vectors={"ann/lora": 0.5}),
        DEMModel.from_pretrained(BASE, vectors={str(folder): 0.5}),
    )


def test_branch_and_pull_request(hub: Hub, base: str, vector: DistributionVector) -> None:
    vector.push_to_hub("ann/maths", base_model=base, revision="draft")
    with pytest.raises(VectorNotFoundError):
        DistributionVector.from_pretrained("ann/maths")
    assert DistributionVector.from_pretrained("ann/maths", revision="draft").config is not None
    info = vector.push_to_hub("ann/maths", base_model=base, create_pr=True)
    assert info.pr_num == 1
    assert DistributionVector.from_pretrained("ann/maths@refs/pr/1").sha256 == vector.sha256


def test_private(hub: Hub, base: str, vector: DistributionVector) -> None:
    vector.push_to_hub("ann/secret", base_model=base, private=True)
    with pytest.raises(HfHubHTTPError, match="ann/secret"):
        DistributionVector.from_pretrained("ann/secret", token=False)
    DistributionVector.from_pretrained("ann/secret")


# Stores


def test_a_store_and_one_member_without_the_others(
    hub: Hub, base: str, llama: Models, vector: DistributionVector, tmp_path: Path
) -> None:
    store = VectorStore.create(tmp_path / "store", llama.base)
    store.add("maths", vector)
    store.add("code", DistributionVector.extract(llama.base, llama.low, codec="lowrank"))
    store.push_to_hub("ann/vectors", base_model=base)
    hub.forget_requests()
    there = VectorStore.from_pretrained("ann/vectors")
    assert list(there) == ["code", "maths"]
    there["code"]
    downloaded = {seen.path.partition("/resolve/")[2].partition("/")[2] for seen in hub.requests("GET", "/resolve/")}
    assert not any(name.startswith("maths/") for name in downloaded)
    assert {"vector_store.json", "code/vector_config.json"} <= downloaded
    run_code(ModelCard(hub.files("ann/vectors")["README.md"].decode()))


def test_a_store_of_another_base(
    hub: Hub, base: str, llama: Models, vector: DistributionVector, tmp_path: Path
) -> None:
    store = VectorStore.create(tmp_path / "store", BASE)
    store.add("maths", vector)
    store.push_to_hub("ann/vectors")
    other = VectorStore.create(tmp_path / "other", llama.full)
    other.add("code", DistributionVector.extract(llama.full, llama.base, codec="dense"))
    with pytest.raises(BaseMismatchError, match="has vectors of .* Push them to another repository"):
        other.push_to_hub("ann/vectors", base_model=base)
