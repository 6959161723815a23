"""Recipes on top of each other on the Hub: pushed, loaded from there, on their cards, and with the Hub gone."""

import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from transformers import AutoModelForCausalLM

from dem_hub import DEMConfig, DEMModel, DistributionVector
from dem_hub.errors import ConfigError
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import open_recipe
from dem_hub.models.export import export
from dem_hub.models.planned import PlannedModel
from dem_hub.models.upload import push_merged
from tests.fake_hub.server import Hub
from tests.hub.round_trip import assert_same
from tests.support.processes import run
from tests.support.tiny_models import shake

FIRST, VECTOR, SECOND = "ann/dem", "ann/second-maths", "ann/second"


@pytest.fixture
def model(recipe: DEMConfig, tmp_path: Path) -> Path:
    """The export of the first round, which is on the Hub as a recipe."""
    recipe.push_to_hub(FIRST)
    export(PlannedModel.of(open_recipe(VectorSource(FIRST))), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def second(model: Path, tmp_path: Path) -> DEMConfig:
    """The recipe of a second round, on the Hub with its vector."""
    finetuned = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    shake(finetuned, 9)
    finetuned.save_pretrained(tmp_path / "finetuned")
    vector = DistributionVector.extract(FIRST, tmp_path / "finetuned", codec="dense")
    vector.push_to_hub(VECTOR)
    recipe = DEMModel.from_pretrained(FIRST, vectors={VECTOR: 0.5}).dem.config
    recipe.push_to_hub(SECOND)
    return recipe


def load(hub: Hub, home: Path, **environment: str) -> str:
    """Load the second round in a process of its own, with a cache of its own."""
    code = (
        "from dem_hub import DEMModel\nfrom transformers import AutoTokenizer\n"
        f"model = DEMModel.from_pretrained('{SECOND}')\n"
        f"model.save_pretrained({str(home / 'loaded')!r})\n"
        f"print(model.dem.config.base.repo_id, AutoTokenizer.from_pretrained('{SECOND}').vocab_size)"
    )
    environment = hub.environment(home, **environment)
    done = run(code, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_there_and_back(hub: Hub, second: DEMConfig, model: Path, tmp_path: Path) -> None:
    """Another machine has the same weights, and needs no Hub the second time."""
    assert load(hub, tmp_path / "home") == f"{FIRST} 64\n"
    hub.forget_requests()
    assert load(hub, tmp_path / "home", HF_HUB_OFFLINE="1") == f"{FIRST} 64\n"
    assert not hub.requests()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "home" / "loaded")
    # The vector is one of the first round's export, too.
    assert_same(loaded, DEMModel.from_pretrained(model, vectors={VECTOR: 0.5}))


def test_commits_are_pinned_all_the_way_down(hub: Hub, second: DEMConfig) -> None:
    """A round that is searched again does not move the one that was trained from it."""
    before = DEMModel.from_pretrained(SECOND)
    first = DEMConfig.from_pretrained(FIRST)
    first.with_coefficients({"ann/maths": -0.5}).push_to_hub(FIRST)
    assert json.loads(hub.files(SECOND)["config.json"])["base"]["commit"] == second.base.commit
    assert_same(before, DEMModel.from_pretrained(SECOND))


def test_the_card_lists_the_rounds(hub: Hub, second: DEMConfig) -> None:
    card = ModelCard(hub.files(SECOND)["README.md"].decode())
    assert card.data.to_dict()["base_model"] == [FIRST, VECTOR]
    rounds = [line for line in card.text.splitlines() if line.startswith(("| [", "The base ["))]
    link = "[{0}](https://huggingface.co/{0})".format
    assert rounds == [
        f"| {link(FIRST)} | base |",
        f"| {link(VECTOR)} | 0.5 |",
        f"The base {link(FIRST)} is a recipe itself, from an earlier round:",
        f"| {link('org/base')} | base |",
        f"| {link('ann/maths')} | 0.5 |",
    ]
    push_merged(PlannedModel.of(open_recipe(VectorSource(SECOND))), "ann/merged")
    assert "is a recipe itself" in hub.files("ann/merged")["README.md"].decode()


def test_what_is_in_a_private_round_is_on_no_card(hub: Hub, second: DEMConfig, api: HfApi) -> None:
    api.update_repo_settings(FIRST, private=True)
    second.push_to_hub("ann/public")
    card = hub.files("ann/public")["README.md"].decode()
    assert FIRST in card
    assert "ann/maths" not in card


def test_headers_say_whether_it_fits(hub: Hub, second: DEMConfig, tmp_path: Path) -> None:
    """A dry run with an empty cache fetches no weights, of no round."""
    hub.forget_requests()
    code = (
        "from dem_hub.hub.references import VectorSource\nfrom dem_hub.merging.opening import open_recipe\n"
        "from dem_hub.models.planned import PlannedModel\n"
        f"opened = open_recipe(VectorSource('{SECOND}'), headers_only=True)\n"
        "print(len(opened.remotes), PlannedModel.of(opened).nbytes)"
    )
    environment = hub.environment(tmp_path / "home")
    done = run(code, environment=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    nbytes = PlannedModel.of(open_recipe(VectorSource(SECOND))).nbytes
    assert done.stdout == f"3 {nbytes}\n"
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_a_local_round_is_pushed_first(hub: Hub, second: DEMConfig, tmp_path: Path) -> None:
    """A recipe that is a folder is refused as a base as any other folder is, and the message says what to do."""
    DEMConfig.from_pretrained(FIRST).save_pretrained(tmp_path / "first")
    local = DEMModel.from_pretrained(tmp_path / "first", vectors={VECTOR: 0.5}).dem.config
    with pytest.raises(ConfigError, match="is a recipe, so push it first: dem-hub push .*/first"):
        local.push_to_hub("ann/local")
    assert not HfApi().repo_exists("ann/local")
    local.push_to_hub("ann/local", base_model=FIRST)
    assert str(tmp_path) not in "".join(content.decode(errors="ignore") for content in hub.files("ann/local").values())
    assert_same(DEMModel.from_pretrained("ann/local"), DEMModel.from_pretrained(SECOND))


def test_a_round_on_the_hub_opens_no_folder(hub: Hub, second: DEMConfig, api: HfApi, tmp_path: Path) -> None:
    """Neither by a path in the recipe of an earlier round, nor by a folder with a repository's name."""
    (tmp_path / "org" / "base").mkdir(parents=True)  # the tests' working directory is `tmp_path`
    (tmp_path / "org" / "base" / "config.json").write_text("{}")
    assert DEMModel.from_pretrained(SECOND).dem.config.base.repo_id == FIRST
    data = json.loads(hub.files(FIRST)["config.json"])
    data["base"] = {"path": str(tmp_path), "commit": None, "subfolder": "", "fingerprint": None}
    commit = api.upload_file(repo_id=FIRST, path_in_repo="config.json", path_or_fileobj=json.dumps(data).encode()).oid
    data = json.loads(hub.files(SECOND)["config.json"])
    data["base"]["commit"] = commit
    api.upload_file(repo_id=SECOND, path_in_repo="config.json", path_or_fileobj=json.dumps(data).encode())
    with pytest.raises(ConfigError, match="comes from the Hub and names the local path"):
        DEMModel.from_pretrained(SECOND)


def test_a_circle_on_the_hub(hub: Hub, second: DEMConfig, api: HfApi) -> None:
    """By branches, as commits cannot name each other."""
    for repo_id, base in ((FIRST, SECOND), (SECOND, FIRST)):
        data = json.loads(hub.files(repo_id)["config.json"])
        data["base"] = {"repo_id": base, "commit": None, "subfolder": "", "fingerprint": None}
        api.upload_file(repo_id=repo_id, path_in_repo="config.json", path_or_fileobj=json.dumps(data).encode())
    with pytest.raises(ConfigError, match=f"The recipe '{FIRST}@.*' is based on itself"):
        DEMModel.from_pretrained(FIRST)
