"""Vectors, stores, recipes and merged models on the Hub and back, against the tests' own Hub and through the unmodified client."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import HfHubHTTPError

from dem_hub import DEMConfig, DEMModel, DistributionVector, VectorStore
from dem_hub.cli.push import push_folder
from dem_hub.errors import BaseMismatchError, ConfigError, NotFoundError, PushConflictError, VectorNotFoundError
from dem_hub.hub.commits import Change, push
from dem_hub.hub.listing import list_vectors
from dem_hub.hub.references import VectorSource
from dem_hub.merging.config import HERE
from dem_hub.merging.opening import open_recipe
from dem_hub.models.export import export
from dem_hub.models.planned import PlannedModel
from dem_hub.models.upload import push_export
from tests.fake_hub.server import Hub
from tests.support.tiny_models import Models, Zoo

BASE = "org/base"


@pytest.fixture
def api(hub: Hub) -> HfApi:
    """What `ann` does without dem_hub. `org/base` is a tied Llama that everybody can read."""
    return HfApi()


@pytest.fixture
def base(hub: Hub, api: HfApi, llama: Models) -> str:
    hub.add_user("ann", orgs=("org",))
    api.create_repo(BASE)
    (llama.base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base\n")
    api.upload_folder(repo_id=BASE, folder_path=llama.base)
    (llama.base / "README.md").unlink()
    return BASE


@pytest.fixture
def vector(llama: Models) -> DistributionVector:
    return DistributionVector.extract(llama.base, llama.full, codec="dense")


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def assert_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


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
    assert_same(model, DEMModel.from_pretrained(llama.base, vectors={_saved(vector, tmp_path): 0.5}))


def _saved(vector: DistributionVector, folder: Path) -> str:
    vector.save_pretrained(folder / "saved")
    return str(folder / "saved")


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
    _run_code(card)


def _run_code(card: ModelCard) -> None:
    """The card's example works as it stands."""
    blocks = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    assert len(blocks) == 1
    exec(compile(blocks[0], "README.md", "exec"), {})


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


# Several people


def test_two_push_to_one_store_at_once(
    hub: Hub, base: str, llama: Models, vector: DistributionVector, tmp_path: Path
) -> None:
    """The second commit is refused, made again on top of the first, and both vectors are there."""
    stores = []
    for name in ("maths", "code"):
        store = VectorStore.create(tmp_path / name, BASE)
        store.add(name, vector)
        stores.append(store)
    stores[0].push_to_hub("ann/vectors")
    other = DistributionVector.extract(llama.base, llama.low, codec="dense")
    stores[0].add("law", other)
    raced = []

    def compose_late(head: object) -> Change:  # between the second's look at the branch and its commit
        if not raced:
            raced.append(head)
            stores[0].push_to_hub("ann/vectors")
        return original(head)

    import dem_hub.vectors.store as module

    real = module.push

    def racing(repo_id: str, compose: object, *rest: object) -> object:
        nonlocal original
        if raced:
            return real(repo_id, compose, *rest)  # type: ignore[arg-type]
        original = compose
        return real(repo_id, compose_late, *rest)  # type: ignore[arg-type]

    original = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "push", racing)
        stores[1].push_to_hub("ann/vectors")
    assert list(VectorStore.from_pretrained("ann/vectors")) == ["code", "law", "maths"]
    assert len(hub.requests("POST", "/api/models/ann/vectors/commit")) == 4  # one of them refused


def test_a_conflict_names_the_files(hub: Hub, api: HfApi) -> None:
    calls = []

    def compose(head: object) -> Change:
        calls.append(head)
        api.upload_file(repo_id="ann/r", path_in_repo="a.txt", path_or_fileobj=b"theirs %d" % len(calls))
        return Change({"a.txt": "ours"})

    with pytest.raises(
        PushConflictError, match=r"moved from \w+ to \w+ while this was pushed, and the same files changed"
    ) as caught:
        push("ann/r", compose, {}, "x")  # type: ignore[arg-type]
    assert "'a.txt'" in str(caught.value)
    assert hub.files("ann/r")["a.txt"] == b"theirs 1"


def test_another_file_is_no_conflict(hub: Hub, api: HfApi) -> None:
    calls = []

    def compose(head: object) -> Change:
        calls.append(head)
        if len(calls) == 1:
            api.upload_file(repo_id="ann/r", path_in_repo="b.txt", path_or_fileobj=b"theirs")
        return Change({"a.txt": "ours"})

    push("ann/r", compose, {}, "x")  # type: ignore[arg-type]
    assert (len(calls), hub.files("ann/r")) == (2, {"a.txt": b"ours", "b.txt": b"theirs"})


def test_parent_commit(hub: Hub, base: str, vector: DistributionVector) -> None:
    first = vector.push_to_hub("ann/maths", base_model=base)
    second = vector.push_to_hub("ann/maths", base_model=base, commit_message="again", parent_commit=first.oid)
    if second.oid != first.oid:
        with pytest.raises(PushConflictError, match=f"is at {second.oid}, and parent_commit is {first.oid}"):
            vector.push_to_hub("ann/maths", base_model=base, parent_commit=first.oid)
    with pytest.raises(PushConflictError, match="parent_commit is " + "0" * 40):
        vector.push_to_hub("ann/maths", base_model=base, parent_commit="0" * 40)


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
    _run_code(ModelCard(hub.files("ann/vectors")["README.md"].decode()))


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


# Recipes


@pytest.fixture
def recipe(base: str, vector: DistributionVector) -> DEMConfig:
    vector.push_to_hub("ann/maths", base_model=base)
    return DEMModel.from_pretrained(BASE, vectors={"ann/maths": 0.5}).dem.config


def test_a_recipe_there_and_back_in_another_process(hub: Hub, recipe: DEMConfig, tmp_path: Path) -> None:
    recipe.push_to_hub("ann/dem")
    code = (
        "from dem_hub import DEMModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\nimport torch\n"
        "a = DEMModel.from_pretrained('ann/dem'); b = AutoModelForCausalLM.from_pretrained('ann/dem')\n"
        "assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))\n"
        "print(type(b).__name__, b.dem.coefficients, AutoTokenizer.from_pretrained('ann/dem').vocab_size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=hub.environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.startswith("LlamaForCausalLM {'ann/maths': 0.5}")


def test_a_recipe_pins_commits(
    hub: Hub, recipe: DEMConfig, base: str, vector: DistributionVector, llama: Models
) -> None:
    """A vector or a base that moves on does not move a recipe."""
    recipe.push_to_hub("ann/dem")
    before = DEMModel.from_pretrained("ann/dem")
    DistributionVector.extract(BASE, llama.low, codec="dense").push_to_hub("ann/maths")
    data = json.loads(hub.files("ann/dem")["config.json"])
    assert len(data["base"]["commit"]) == len(data["vectors"][0]["commit"]) == 40
    assert_same(before, DEMModel.from_pretrained("ann/dem"))


def test_a_recipe_of_local_vectors(
    hub: Hub, base: str, vector: DistributionVector, llama: Models, tmp_path: Path
) -> None:
    path = _saved(vector, tmp_path)
    model = DEMModel.from_pretrained(llama.base, vectors={path: 0.5})
    with pytest.raises(ConfigError, match=f"'{path}'(.|\n)*include_vectors=True"):
        model.dem.push_to_hub("ann/dem", base_model=base)
    model.dem.push_to_hub("ann/dem", base_model=base, include_vectors=True)
    data = json.loads(hub.files("ann/dem")["config.json"])
    assert [(entry["repo_id"], entry["subfolder"]) for entry in data["vectors"]] == [(HERE, "vectors/saved")]
    assert str(tmp_path) not in hub.files("ann/dem")["config.json"].decode()
    again = DEMModel.from_pretrained("ann/dem")
    assert again.dem.coefficients == {"ann/dem//vectors/saved": 0.5}
    assert_same(model, again)
    _run_code(ModelCard(hub.files("ann/dem")["README.md"].decode()))


def test_growing_in_the_open(hub: Hub, base: str, vector: DistributionVector, llama: Models, tmp_path: Path) -> None:
    """A new vector and a new version of the recipe, as one pull request."""
    DEMModel.from_pretrained(BASE, vectors={_saved(vector, tmp_path): 0.5}).dem.push_to_hub(
        "ann/dem", include_vectors=True
    )
    first = DEMConfig.from_pretrained("ann/dem")
    DistributionVector.extract(llama.base, llama.low, codec="dense").save_pretrained(tmp_path / "new")
    vectors = {record.source: record.coefficient for record in first.vectors} | {
        VectorSource(str(tmp_path / "new")): 0.25
    }
    grown = DEMModel.from_pretrained(BASE, vectors=vectors)
    info = grown.dem.push_to_hub("ann/dem", include_vectors=True, create_pr=True)
    assert len(DEMConfig.from_pretrained("ann/dem").vectors) == 1
    assert_same(grown, DEMModel.from_pretrained("ann/dem", revision=info.pr_revision))
    HfApi().merge_pull_request("ann/dem", info.pr_num)
    assert_same(grown, DEMModel.from_pretrained("ann/dem"))


def test_the_card_of_a_recipe(hub: Hub, recipe: DEMConfig) -> None:
    from dataclasses import replace

    search = {"losses": {"maths": 1.0, "code": 2.0}, "base_losses": {"maths": 1.5, "code": 2.5}}
    replace(recipe, search=search).push_to_hub("ann/dem")
    files = hub.files("ann/dem")
    card = ModelCard(files["README.md"].decode())
    card.validate()
    data = card.data.to_dict()
    assert (data["base_model"], data["base_model_relation"]) == ([BASE, "ann/maths"], "merge")
    assert [(result.dataset_name, result.metric_value) for result in card.data.eval_results or []] == [
        ("maths", 2.7183),
        ("code", 7.3891),
    ]
    assert "| maths | 4.48 | 2.72 | 1.0000 |" in card.text
    assert "](perplexity.png)" in card.text
    assert files["perplexity.png"].startswith(b"\x89PNG")
    _run_code(card)


def test_licenses_that_disagree(hub: Hub, base: str, vector: DistributionVector, api: HfApi) -> None:
    vector.push_to_hub("ann/maths", base_model=base)
    text = hub.files("ann/maths")["README.md"].decode().replace("apache-2.0", "cc-by-nc-4.0")
    api.upload_file(repo_id="ann/maths", path_in_repo="README.md", path_or_fileobj=text.encode())
    recipe = DEMModel.from_pretrained(BASE, vectors={"ann/maths": 0.5}).dem.config
    with pytest.warns(UserWarning, match="licenses disagree: org/base has apache-2.0, ann/maths has cc-by-nc-4.0"):
        recipe.push_to_hub("ann/dem")
    card = ModelCard(hub.files("ann/dem")["README.md"].decode())
    assert card.data.get("license") is None
    assert "disagree" in card.text


# Merged models, and whatever a folder holds


def test_a_merged_model(hub: Hub, recipe: DEMConfig, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    recipe.push_to_hub("ann/dem")
    export(PlannedModel.of(open_recipe(VectorSource("ann/dem"))), tmp_path / "merged")
    push_export(tmp_path / "merged", "ann/merged")
    model = AutoModelForCausalLM.from_pretrained("ann/merged")
    assert_same(model, DEMModel.from_pretrained("ann/dem"))
    card = ModelCard(hub.files("ann/merged")["README.md"].decode())
    assert card.data.library_name == "transformers"
    assert DEMConfig.from_pretrained("ann/merged").coefficients == {"ann/maths": 0.5}
    _run_code(card)


def test_a_merged_model_of_local_vectors_says_what_stays_behind(
    hub: Hub, base: str, vector: DistributionVector, tmp_path: Path
) -> None:
    from dem_hub.merging.opening import open_base_and_vectors

    export(
        PlannedModel.of(open_base_and_vectors(VectorSource(BASE), {_saved(vector, tmp_path): 0.5})), tmp_path / "merged"
    )
    with pytest.warns(UserWarning, match="dem_config.json names folders of this machine .*saved"):
        push_export(tmp_path / "merged", "ann/merged")
    assert "dem_config.json" not in hub.files("ann/merged")
    assert str(tmp_path) not in hub.files("ann/merged")["README.md"].decode()


def test_push_folder_knows_what_it_has(
    hub: Hub, recipe: DEMConfig, vector: DistributionVector, llama: Models, tmp_path: Path
) -> None:
    push_folder(Path(_saved(vector, tmp_path)), "ann/one", base_model=BASE)
    store = VectorStore.create(tmp_path / "store", BASE)
    store.add("maths", vector)
    push_folder(tmp_path / "store", "ann/two")
    recipe.save_pretrained(tmp_path / "recipe")
    push_folder(tmp_path / "recipe", "ann/three")
    assert [
        name in hub.files(repo)
        for repo, name in (
            ("ann/one", "vector_config.json"),
            ("ann/two", "vector_store.json"),
            ("ann/three", "config.json"),
        )
    ] == [True] * 3
    with pytest.raises(NotFoundError, match="no vector, store, recipe or merged model") as caught:
        push_folder(llama.full, "ann/four")
    assert caught.type is NotFoundError
    with pytest.raises(ConfigError, match="is a recipe, for which subfolder means nothing"):
        push_folder(tmp_path / "recipe", "ann/three", subfolder="x")


def test_list_vectors(
    hub: Hub, recipe: DEMConfig, base: str, vector: DistributionVector, zoo: Zoo, tmp_path: Path
) -> None:
    store = VectorStore.create(tmp_path / "store", BASE)
    store.add("maths", vector)
    store.push_to_hub("ann/vectors")
    DistributionVector.from_pretrained(zoo.adapter("llama-tied", "bfloat16")).push_to_hub("ann/lora", base_model=base)
    recipe.push_to_hub("ann/dem")
    assert {found.repo_id: found.kind for found in list_vectors(BASE)} == {
        "ann/maths": "vector",
        "ann/vectors": "store",
        "ann/lora": "lora",
    }
    assert len(list_vectors(BASE, limit=1)) == 1
    assert list_vectors("org/other") == []
