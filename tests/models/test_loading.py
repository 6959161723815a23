"""Loading: native models from a base with vectors, or from a recipe."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMModel, VectorSource
from dem_hub.errors import BaseMismatchError, CheckpointError, ConfigError, NotFoundError
from tests.models.helpers import base_and_two_vectors, same_tensors, save_recipe, state_of
from tests.support.tiny_models import (
    FAMILIES,
    Models,
    Zoo,
    assert_around,
    build,
    load_tensors,
    read_deltas,
    reference,
    reshard,
    shake,
)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_native_class_with_merged_weights(zoo: Zoo, family: str) -> None:
    base, first, second = base_and_two_vectors(zoo, family)
    model = DEMModel.from_pretrained(base, vectors={first: 0.3, second: 0.6})
    assert type(model) is type(build(family))
    exact = reference(base, [(read_deltas(Path(first)), 0.3), (read_deltas(Path(second)), 0.6)])
    for name, values in exact.items():
        assert_around(model.state_dict()[name], values)
    assert model.dem.coefficients == {first: 0.3, second: 0.6}
    assert model.name_or_path == str(base)
    assert not model.training


def test_the_base_generation_config_comes_along(llama: Models, zoo: Zoo) -> None:
    model = DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 0.5})
    assert (model.generation_config.max_length, model.generation_config.eos_token_id) == (37, 2)
    assert model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False, eos_token_id=None).shape == (1, 5)


def test_subfolders(llama: Models, zoo: Zoo, tmp_path: Path) -> None:
    reshard(llama.base, tmp_path / "many" / "small", 2)
    vectors = {str(zoo.vector("llama-tied")): 0.5}
    expected = state_of(DEMModel.from_pretrained(llama.base, vectors=vectors))
    assert same_tensors(
        state_of(DEMModel.from_pretrained(tmp_path / "many", subfolder="small", vectors=vectors)), expected
    )
    shutil.copytree(zoo.vector("llama-tied"), tmp_path / "many" / "maths")
    source = VectorSource(str(tmp_path / "many"), subfolder="maths")
    model = DEMModel.from_pretrained(llama.base, vectors={source: 0.5})
    assert same_tensors(state_of(model), expected)
    model.dem.set_coefficients({f"{tmp_path}/many//maths": 0.0})
    assert torch.equal(model.model.norm.weight, load_tensors(llama.base)["model.norm.weight"])


def test_rounding_and_seed(llama: Models, zoo: Zoo) -> None:
    vectors = {str(zoo.vector("llama-tied")): 0.3}
    models = [
        DEMModel.from_pretrained(llama.base, vectors=vectors, **options)
        for options in ({}, {"rounding_seed": 1}, {"rounding": "nearest"})
    ]
    assert not any(same_tensors(state_of(models[i]), state_of(models[j])) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert (models[1].dem.config.rounding_seed, models[2].dem.config.rounding) == (1, "nearest")
    with pytest.raises(ConfigError, match="rounding is 'up'"):
        DEMModel.from_pretrained(llama.base, vectors=vectors, rounding="up")


def test_no_vectors_is_the_base(llama: Models) -> None:
    assert torch.equal(
        DEMModel.from_pretrained(llama.base, vectors={}).model.norm.weight,
        load_tensors(llama.base)["model.norm.weight"],
    )


def test_never_instantiated() -> None:
    with pytest.raises(TypeError, match="DEMModel.from_pretrained"):
        DEMModel()


def test_a_recipe(zoo: Zoo, tmp_path: Path) -> None:
    base, first, second = base_and_two_vectors(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.3, second: 0.6}, rounding_seed=5)
    model.dem.save_pretrained(tmp_path / "recipe")
    names = {path.name for path in (tmp_path / "recipe").iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    } <= names
    assert not any(name.endswith(".safetensors") for name in names)
    again = DEMModel.from_pretrained(tmp_path / "recipe")
    assert same_tensors(state_of(again), state_of(model))
    assert again.dem.coefficients == model.dem.coefficients
    assert repr(again.dem) == f"{base} + 0.3 * {first} + 0.6 * {second}"


def test_a_recipe_moves_with_what_it_names(zoo: Zoo, tmp_path: Path) -> None:
    here = tmp_path / "here"
    base, first, _ = base_and_two_vectors(zoo, "llama-tied")
    shutil.copytree(base, here / "base")
    shutil.copytree(first, here / "vectors" / "maths")
    model = DEMModel.from_pretrained(here / "base", vectors={str(here / "vectors" / "maths"): 0.4})
    model.dem.save_pretrained(here / "recipe")
    expected = state_of(model)
    there = here.rename(tmp_path / "there")
    moved = DEMModel.from_pretrained(there / "recipe")
    assert same_tensors(state_of(moved), expected)
    moved.dem.set_coefficients({str(there / "vectors" / "maths"): 0.0})


def test_relative_paths_outlive_a_change_of_directory(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, first, _ = base_and_two_vectors(zoo, "llama-tied")
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(first, tmp_path / "maths")
    model = DEMModel.from_pretrained("base", vectors={"maths": 0.4})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model.dem.set_coefficients({str(tmp_path / "maths"): 0.2})
    model.dem.save_pretrained("recipe")
    assert same_tensors(state_of(DEMModel.from_pretrained("recipe")), state_of(model))


def test_a_recipe_with_vectors_of_its_base(zoo: Zoo, tmp_path: Path) -> None:
    recipe = save_recipe(zoo, tmp_path / "recipe")
    with pytest.raises(BaseMismatchError, match="Put it on the base it was made from"):
        DEMModel.from_pretrained(recipe, vectors={str(zoo.vector("llama-tied")): 0.5})
    with pytest.raises(NotFoundError, match="is not a recipe. Say which vectors to add to it") as caught:
        DEMModel.from_pretrained(zoo.models("llama-tied").base)
    assert caught.type is NotFoundError


@pytest.mark.parametrize("vectors", [["maths-vector"], "maths-vector"], ids=str)
def test_vectors_without_coefficients(llama: Models, vectors: Any) -> None:
    with pytest.raises(
        ConfigError,
        match=r"vectors is .*maths-vector.*; give the coefficient of each: vectors=\{'maths-vector': 0\.5\}",
    ):
        DEMModel.from_pretrained(llama.base, vectors=vectors)


def test_recipe_whose_base_or_vector_changed(zoo: Zoo, tmp_path: Path) -> None:
    base, first, _ = base_and_two_vectors(zoo, "llama-tied")
    shutil.copytree(base, tmp_path / "base")
    shutil.copytree(first, tmp_path / "maths")
    DEMModel.from_pretrained(tmp_path / "base", vectors={str(tmp_path / "maths"): 0.4}).dem.save_pretrained(
        tmp_path / "recipe"
    )
    shutil.rmtree(tmp_path / "maths")
    shutil.copytree(zoo.vector("llama-tied", kind="short"), tmp_path / "maths")
    with pytest.raises(
        CheckpointError, match=r"(?s)Vectors changed since the recipe was made.*has sha256 .*, the recipe says"
    ):
        DEMModel.from_pretrained(tmp_path / "recipe")
    reshard(zoo.models("llama-tied").low, tmp_path / "base")
    with pytest.raises(
        BaseMismatchError,
        match="another model, or another revision. Restore it, or pass --allow-base-mismatch, in Python allow_base",
    ):
        DEMModel.from_pretrained(tmp_path / "recipe")


def test_allow_base_mismatch(zoo: Zoo) -> None:
    other, first, _ = zoo.models("llama-tied").low, *base_and_two_vectors(zoo, "llama-tied")[1:]
    with pytest.raises(BaseMismatchError, match="allow_base_mismatch=True"):
        DEMModel.from_pretrained(other, vectors={first: 0.4})
    model = DEMModel.from_pretrained(other, vectors={first: 0.4}, allow_base_mismatch=True)
    exact = reference(other, [(read_deltas(Path(first)), 0.4)])
    for name, values in exact.items():
        assert_around(model.state_dict()[name], values)
    model.dem.set_coefficients({first: 0.0})


def test_mixtral_experts_are_merged_on_disk_names(zoo: Zoo) -> None:
    base, first, second = base_and_two_vectors(zoo, "mixtral")
    model = DEMModel.from_pretrained(base, vectors={first: 0.9, second: -0.2})
    exact = reference(base, [(read_deltas(Path(first)), 0.9), (read_deltas(Path(second)), -0.2)])
    down = torch.stack(
        [exact[name] for name in sorted(exact) if "layers.1" in name and "experts" in name and ".w2." in name]
    )
    assert_around(model.state_dict()["model.layers.1.mlp.experts.down_proj"], down)


def test_saved_by_transformers_it_is_an_ordinary_model(zoo: Zoo, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base, first, _ = base_and_two_vectors(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.3})
    model.save_pretrained(tmp_path / "saved")
    assert same_tensors(state_of(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), state_of(model))


def test_it_trains(zoo: Zoo) -> None:
    base, first, _ = base_and_two_vectors(zoo, "llama-tied")
    model = DEMModel.from_pretrained(base, vectors={first: 0.3}, dtype="float32").train()
    tokens = torch.arange(20)[None]
    model(tokens, labels=tokens).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    shake(model, 0)
