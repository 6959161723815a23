"""`model.dem`: coefficients changed in place, and other recipes over the same base."""

import copy
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dem_hub import DEMModel, DistributionVector
from dem_hub.errors import BaseMismatchError, CheckpointError, CoefficientError, ConfigError
from dem_hub.models.attached import AttachedRecipe
from tests.models.helpers import base_and_two_vectors, same_tensors, save_recipe, state_of
from tests.support.tiny_models import FAMILIES, Models, Zoo, load_tensors, reshard


@pytest.mark.parametrize("family", [*FAMILIES, "mixtral"])
def test_set_coefficients_is_a_fresh_load(zoo: Zoo, family: str) -> None:
    base, first, second = base_and_two_vectors(zoo, family)
    model = DEMModel.from_pretrained(base, vectors={first: 0.9, second: -0.2})
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    for coefficients in ({first: 0.0, second: 1.0}, {first: -1.0}, {first: 0.3, second: 0.6}):
        model.dem.set_coefficients(coefficients)
    assert same_tensors(state_of(model), state_of(DEMModel.from_pretrained(base, vectors={second: 0.6, first: 0.3})))
    assert {name: parameter.data_ptr() for name, parameter in model.named_parameters()} == places
    assert model.dem.coefficients == {first: 0.3, second: 0.6}
    model.dem.set_coefficients({first: 0, second: 0})
    assert same_tensors(state_of(model), state_of(DEMModel.from_pretrained(base, vectors={})))


def test_unchanged_weights_lie_in_the_file_and_are_still_the_models_own(zoo: Zoo) -> None:
    base, first, second = base_and_two_vectors(zoo, "llama-tied")
    before = (base / "model.safetensors").read_bytes()
    model = DEMModel.from_pretrained(base, vectors={first: 0.0, second: 0.0})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (base / "model.safetensors").read_bytes() == before
    coefficients = {first: 0.3, second: 0.6}
    model.dem.set_coefficients(coefficients)
    assert same_tensors(model.state_dict(), DEMModel.from_pretrained(base, vectors=coefficients).state_dict())


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_set_coefficients_in_another_dtype(zoo: Zoo, dtype: str) -> None:
    base, first, second = base_and_two_vectors(zoo, "gpt2")
    model = DEMModel.from_pretrained(base, vectors={first: 0.9, second: -0.2}, dtype=dtype)
    model.dem.set_coefficients({first: 0.3})
    assert same_tensors(
        state_of(model), state_of(DEMModel.from_pretrained(base, vectors={first: 0.3, second: -0.2}, dtype=dtype))
    )


@pytest.mark.parametrize("prefix", ["transformer."])
def test_checkpoints_without_their_prefix(zoo: Zoo, tmp_path: Path, prefix: str) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix(prefix)] = tensors.pop(name)

    models = zoo.models("gpt2")
    base, finetuned = (
        reshard(models.base, tmp_path / "base", change=drop),
        reshard(models.full, tmp_path / "finetuned", change=drop),
    )
    DistributionVector.extract(base, finetuned, codec="dense").save_pretrained(tmp_path / "vector")
    model = DEMModel.from_pretrained(base, vectors={str(tmp_path / "vector"): 1.0})
    assert torch.equal(model.transformer.wte.weight, load_tensors(models.full)["transformer.wte.weight"])
    model.dem.set_coefficients({str(tmp_path / "vector"): 0.0})
    assert torch.equal(model.transformer.wte.weight, load_tensors(models.base)["transformer.wte.weight"])


def test_tied_tensors_written_out_in_the_base(llama: Models, tmp_path: Path) -> None:
    def duplicate(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    base = reshard(llama.base, tmp_path / "base", change=duplicate)
    DistributionVector.extract(base, llama.full, codec="dense").save_pretrained(tmp_path / "vector")
    name = str(tmp_path / "vector")
    model = DEMModel.from_pretrained(base, vectors={name: 0.3})
    assert model.lm_head.weight is model.model.embed_tokens.weight
    fresh = state_of(DEMModel.from_pretrained(base, vectors={name: 0.6}))
    model.dem.set_coefficients({name: 0.6})
    assert same_tensors(state_of(model), fresh)


def test_a_failed_change_restores_the_model(zoo: Zoo) -> None:
    base, first, second = base_and_two_vectors(zoo, "llama-tied", "float16")
    model = DEMModel.from_pretrained(base, vectors={first: 0.3, second: 0.6})
    before = state_of(model)
    with pytest.raises(CheckpointError, match="beyond the range of the target dtype"):
        model.dem.set_coefficients({first: 1e30})
    assert same_tensors(state_of(model), before)
    assert model.dem.coefficients == {first: 0.3, second: 0.6}
    with pytest.raises(CoefficientError, match="No vector of this recipe is called 'other'"):
        model.dem.set_coefficients({"other": 1.0})
    with pytest.raises(ConfigError, match="finite"):
        model.dem.set_coefficients({first: float("nan")})
    assert same_tensors(state_of(model), before)


def test_deepcopy(zoo: Zoo) -> None:
    base, first, second = base_and_two_vectors(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.3, second: 0.6})
    model.dem.set_coefficients({first: 0.2})
    before = state_of(model)
    twin = copy.deepcopy(model)
    twin.dem.set_coefficients({first: 0.9})
    assert isinstance(twin.dem, AttachedRecipe)
    assert same_tensors(state_of(model), before)
    assert same_tensors(state_of(twin), state_of(DEMModel.from_pretrained(base, vectors={first: 0.9, second: 0.6})))


def test_headless_model_changes_its_coefficients(zoo: Zoo, tmp_path: Path) -> None:
    from transformers import AutoModel

    model = AutoModel.from_pretrained(save_recipe(zoo, tmp_path / "recipe", "gpt2"))
    base, first, second = base_and_two_vectors(zoo, "gpt2")
    model.dem.set_coefficients({first: 0.0, second: 1.0})
    whole = DEMModel.from_pretrained(base, vectors={first: 0.0, second: 1.0})
    assert same_tensors(state_of(model), state_of(whole.transformer))


def test_switching_between_recipes(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    """Each switch to another recipe over the same base gives the bits of a fresh load."""
    vectors = {kind: str(zoo.vector("llama-tied", "bfloat16", kind)) for kind in ("dense", "lowrank", "short")}
    recipes = {
        "a": {vectors["dense"]: 0.4},
        "b": {vectors["lowrank"]: 0.7, vectors["short"]: -0.2},
        "c": {vectors["dense"]: -0.1},
    }
    for name, coefficients in recipes.items():
        DEMModel.from_pretrained(llama.base, vectors=coefficients, rounding_seed=len(name)).dem.save_pretrained(
            tmp_path / name
        )
    model = DEMModel.from_pretrained(tmp_path / "a")
    for name in ("b", "c", "a", "b"):
        model.dem.switch(tmp_path / name)
        assert model.dem.coefficients == recipes[name]
        fresh = DEMModel.from_pretrained(tmp_path / name)
        assert all(
            torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), fresh.parameters(), strict=True)
        )
    model.dem.set_coefficients({vectors["short"]: 0.3})
    fresh = DEMModel.from_pretrained(
        llama.base, vectors={vectors["lowrank"]: 0.7, vectors["short"]: 0.3}, rounding_seed=1
    )
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), fresh.parameters(), strict=True))


def test_a_recipe_that_was_saved_again_is_read_again(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    vector = shutil.copytree(zoo.vector("llama-tied"), tmp_path / "vector")
    own = save_recipe(zoo, tmp_path / "own")
    model = DEMModel.from_pretrained(own)
    other = DEMModel.from_pretrained(llama.base, vectors={str(vector): 0.1})
    for coefficient in (0.7, -0.2):
        other.dem.set_coefficients({"vector": coefficient})
        other.dem.save_pretrained(tmp_path / "other")
        model.dem.switch(tmp_path / "other")
        assert same_tensors(state_of(model), state_of(other))
    # The vector is replaced, and the recipe made anew.
    model.dem.switch(own)
    shutil.rmtree(vector)
    shutil.copytree(zoo.vector("llama-tied", kind="lowrank"), vector)
    DEMModel.from_pretrained(llama.base, vectors={str(vector): -0.2}).dem.save_pretrained(tmp_path / "other")
    fresh = DEMModel.from_pretrained(tmp_path / "other")
    for _ in range(2):
        model.dem.switch(tmp_path / "other")
        assert same_tensors(state_of(model), state_of(fresh))


def test_a_recipe_by_the_same_relative_path_from_another_folder(
    zoo: Zoo, llama: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vector = str(zoo.vector("llama-tied"))
    for name, coefficient in (("here", 0.3), ("there", -0.6)):
        model = DEMModel.from_pretrained(llama.base, vectors={vector: coefficient})
        model.dem.save_pretrained(tmp_path / name / "recipe")
    for name, coefficient in (("here", 0.3), ("there", -0.6), ("here", 0.3)):
        monkeypatch.chdir(tmp_path / name)
        model.dem.switch("recipe")
        assert model.dem.coefficients == {vector: coefficient}


def test_switching_to_another_base(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    model = DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 0.4})
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    DistributionVector.extract(llama.full, llama.base, codec="dense").save_pretrained(tmp_path / "vector")
    DEMModel.from_pretrained(llama.full, vectors={str(tmp_path / "vector"): 0.5}).dem.save_pretrained(
        tmp_path / "other"
    )
    with pytest.raises(BaseMismatchError, match="Load it as a model of its own"):
        model.dem.switch(tmp_path / "other")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.named_parameters())


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_that_is_lent(zoo: Zoo, fails: bool) -> None:
    """It has the other recipe's bits meanwhile, and its own afterwards, also after an error."""
    base, first, second = base_and_two_vectors(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.3}, dtype="bfloat16")
    own = {name: tensor.clone() for name, tensor in state_of(model).items()}
    other = DEMModel.from_pretrained(base, vectors={second: 1.0}, dtype="bfloat16")
    opened = other.dem.open()
    with pytest.raises(KeyError) if fails else nullcontext(), model.dem.lent(opened):
        assert model.dem.config == other.dem.config
        assert model.dem.open() is opened
        assert same_tensors(state_of(model), state_of(other))
        if fails:
            raise KeyError
    assert list(model.dem.coefficients.values()) == [0.3]
    assert same_tensors(state_of(model), own)
