"""Recipes and merged models on the Hub and back, against the tests' own Hub and through the unmodified client."""

import json
import re
from pathlib import Path

import pytest
import transformers
from huggingface_hub import HfApi, ModelCard

from dem_hub import DEMConfig, DEMModel, DistributionVector, VectorStore
from dem_hub.cli.push import push_folder
from dem_hub.errors import ConfigError, NotFoundError
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import open_base_and_vectors, open_config, open_recipe
from dem_hub.merging.records import HERE
from dem_hub.models.export import export
from dem_hub.models.planned import PlannedModel
from dem_hub.models.upload import push_export, push_merged
from tests.fake_hub.server import Hub
from tests.hub.round_trip import assert_same, run_code, saved
from tests.support.families import build
from tests.support.processes import run
from tests.support.tiny_models import Models, shake

BASE = "org/base"


# Recipes


def test_a_recipe_there_and_back_in_another_process(hub: Hub, recipe: DEMConfig, tmp_path: Path) -> None:
    recipe.push_to_hub("ann/dem")
    code = (
        "from dem_hub import DEMModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\nimport torch\n"
        "a = DEMModel.from_pretrained('ann/dem'); b = AutoModelForCausalLM.from_pretrained('ann/dem')\n"
        "assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))\n"
        "print(type(b).__name__, b.dem.coefficients, AutoTokenizer.from_pretrained('ann/dem').vocab_size)\n"
    )
    done = run(code, environment=hub.environment(tmp_path / "home"))
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
    path = saved(vector, tmp_path)
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
    run_code(ModelCard(hub.files("ann/dem")["README.md"].decode()))


def test_growing_in_the_open(hub: Hub, base: str, vector: DistributionVector, llama: Models, tmp_path: Path) -> None:
    """A new vector and a new version of the recipe, as one pull request."""
    DEMModel.from_pretrained(BASE, vectors={saved(vector, tmp_path): 0.5}).dem.push_to_hub(
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
    run_code(card)


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
    run_code(card)


def test_a_merged_model_of_local_vectors_says_what_stays_behind(
    hub: Hub, base: str, vector: DistributionVector, tmp_path: Path
) -> None:
    export(
        PlannedModel.of(open_base_and_vectors(VectorSource(BASE), {saved(vector, tmp_path): 0.5})), tmp_path / "merged"
    )
    with pytest.warns(UserWarning, match="dem_config.json names folders of this machine .*saved"):
        push_export(tmp_path / "merged", "ann/merged")
    assert "dem_config.json" not in hub.files("ann/merged")
    assert str(tmp_path) not in hub.files("ann/merged")["README.md"].decode()


def test_a_merged_model_of_a_local_base(
    hub: Hub, base: str, vector: DistributionVector, llama: Models, tmp_path: Path
) -> None:
    """The base has a name for others, and the recipe is pushed with it once it names repositories only."""
    vector.push_to_hub("ann/maths", base_model=base)
    model = PlannedModel.of(open_base_and_vectors(VectorSource(str(llama.base)), {"ann/maths": 0.5}))
    export(model, tmp_path / "merged")
    push_folder(tmp_path / "merged", "ann/one", base_model=base)
    push_merged(model, "ann/two", base_model=base)
    for repo_id in ("ann/one", "ann/two"):
        recipe = DEMConfig.from_pretrained(repo_id)
        assert (recipe.base.repo_id, len(recipe.base.commit or "")) == (base, 40)
        card = ModelCard(hub.files(repo_id)["README.md"].decode())
        assert card.data.base_model == [base, "ann/maths"]
        assert "| [org/base](https://huggingface.co/org/base) | base |" in card.text
        opened = open_config(recipe)  # which checks that the base and the vector are those of the merge
        assert opened.base.commit == recipe.base.commit
        assert str(llama.base.parent).encode() not in b"".join(hub.files(repo_id).values())


def test_vectors_in_folders_of_one_name(
    hub: Hub, base: str, vector: DistributionVector, llama: Models, tmp_path: Path
) -> None:
    """Each run of a Trainer has its own `checkpoint-500`."""
    paths = {
        str(tmp_path / run / "checkpoint-500"): coefficient for run, coefficient in (("maths", 0.5), ("chat", 0.25))
    }
    vector.save_pretrained(tmp_path / "maths" / "checkpoint-500")
    DistributionVector.extract(llama.base, llama.low, codec="dense").save_pretrained(tmp_path / "chat/checkpoint-500")
    model = DEMModel.from_pretrained(BASE, vectors=paths)
    model.dem.push_to_hub("ann/dem", include_vectors=True)
    again = DEMModel.from_pretrained("ann/dem")
    assert_same(model, again)
    names = ["ann/dem//vectors/maths/checkpoint-500", "ann/dem//vectors/chat/checkpoint-500"]
    assert again.dem.coefficients == dict(zip(names, (0.5, 0.25), strict=True))
    export(PlannedModel.of(open_base_and_vectors(VectorSource(BASE), paths)), tmp_path / "merged")
    with pytest.warns(UserWarning, match="dem_config.json names folders of this machine"):
        push_folder(tmp_path / "merged", "ann/merged")
    card = ModelCard(hub.files("ann/merged")["README.md"].decode())
    assert "| `checkpoint-500 (maths)` | 0.5 |" in card.text
    assert "| `checkpoint-500 (chat)` | 0.25 |" in card.text
    assert card.data.base_model == [BASE]


@pytest.mark.parametrize("family", ["t5", "vit", "llava", "whisper"])
def test_the_cards_of_other_models(hub: Hub, tmp_path: Path, family: str) -> None:
    """Their code loads the model with its head, and so does the Auto class that it names."""
    base = build(family)
    base.save_pretrained(tmp_path / "base")
    shake(base, seed=1)
    base.save_pretrained(tmp_path / "finetuned")
    hub.add_user("ann", orgs=("org",))
    HfApi().create_repo(BASE)
    HfApi().upload_folder(repo_id=BASE, folder_path=tmp_path / "base")
    DistributionVector.extract(BASE, tmp_path / "finetuned", codec="dense").push_to_hub("ann/vector")
    model = DEMModel.from_pretrained(BASE, vectors={"ann/vector": 0.5})
    model.dem.push_to_hub("ann/dem")
    push_merged(PlannedModel.of(open_recipe(VectorSource("ann/dem"))), "ann/merged")
    for repo_id in ("ann/dem", "ann/merged"):
        card = ModelCard(hub.files(repo_id)["README.md"].decode())
        found = run_code(card)["model"]
        assert type(found) is type(base)
        assert_same(model, found)
        auto_class = re.findall(r"(Auto\w+)\.from_pretrained", card.text)[0]
        assert_same(model, getattr(transformers, auto_class).from_pretrained(repo_id))


def test_push_folder_knows_what_it_has(
    hub: Hub, recipe: DEMConfig, vector: DistributionVector, llama: Models, tmp_path: Path
) -> None:
    push_folder(Path(saved(vector, tmp_path)), "ann/one", base_model=BASE)
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
