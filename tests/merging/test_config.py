"""Vector configs and recipes: written and read back the same, and nothing read that is not understood."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dem_hub import DEMConfig, VectorSource
from dem_hub.errors import CoefficientError, ConfigError, NotFoundError
from dem_hub.files.folders import is_recipe
from dem_hub.hub.references import BaseRecord
from dem_hub.merging.records import VectorRecord
from dem_hub.vectors.config import TensorRecord, VectorConfig

COMMIT = "0123456789abcdef" * 2 + "01234567"
BASE = BaseRecord("org/base", COMMIT, "sub", "f" * 64)
RECORD = TensorRecord((4, 2), "BF16", "lowrank", 1.5, 0.25, 0.9, "ab", module="model.layer", transposed=True)
VECTOR = VectorConfig(
    BASE, "lowrank", {"rank": 4}, {"layer.weight": RECORD}, {"vector_model.safetensors": "0" * 64}, "me/tuned"
)
RECIPE = DEMConfig(
    BASE,
    (VectorRecord("me/maths", 0.4, COMMIT, "", "1" * 64, "lowrank"), VectorRecord("me/many", -0.25, None, "chat")),
    dtype="bfloat16", rounding="nearest", rounding_seed=7, architectures=("LlamaForCausalLM",), search={"method": "by hand"},
)  # fmt: skip


def recipe_data(**changes: Any) -> dict[str, Any]:
    return json.loads(json.dumps(RECIPE.to_dict())) | changes  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("me/vectors", VectorSource("me/vectors")),
        ("me/vectors@v2", VectorSource("me/vectors", "v2")),
        ("me/vectors//maths", VectorSource("me/vectors", None, "maths")),
        ("me/vectors@v2//maths/low", VectorSource("me/vectors", "v2", "maths/low")),
    ],
)
def test_source_is_read_and_written(text: str, expected: VectorSource) -> None:
    assert VectorSource.parse(text) == expected == VectorSource.parse(expected)
    assert str(expected) == text


def test_existing_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "odd@name"
    folder.mkdir()
    assert VectorSource.parse(folder) == VectorSource(str(folder))


@pytest.mark.parametrize("subfolder", ["..", "a/../../b", "/etc", "a\\b", "c:/x"])
@pytest.mark.parametrize(
    "record",
    [VectorSource, BaseRecord, lambda name, **rest: VectorRecord(name, 1.0, **rest)],
    ids=["source", "base", "vector"],
)
def test_subfolders_stay_inside(record: Any, subfolder: str) -> None:
    with pytest.raises(ConfigError, match="may not contain"):
        record("me/vectors", subfolder=subfolder)


@pytest.mark.parametrize("commit", ["main", COMMIT[:12], COMMIT.upper(), COMMIT + "0"])
@pytest.mark.parametrize(
    "record", [BaseRecord, lambda name, commit: VectorRecord(name, 1.0, commit)], ids=["base", "vector"]
)
def test_commits_are_whole(record: Any, commit: str) -> None:
    with pytest.raises(ConfigError, match="not 40 hex digits. Pin the full commit"):
        record("me/vectors", commit)


@pytest.mark.parametrize("coefficient", [float("nan"), float("inf"), 10**400, "0.4", True, None], ids=str)
def test_coefficients_are_finite_numbers(coefficient: Any) -> None:
    with pytest.raises(ConfigError, match="must be a finite number"):
        VectorRecord("me/maths", coefficient)


@pytest.mark.parametrize("coefficient", [np.bool_(True), np.array(0.5), torch.tensor(0.5)], ids=repr)
def test_what_is_no_real_number_for_python_is_named(coefficient: Any) -> None:
    kind = f"{type(coefficient).__module__}.{type(coefficient).__qualname__}"
    with pytest.raises(ConfigError, match=rf"a {kind}; give a Python number, such as its \.item\(\)"):
        VectorRecord("me/maths", coefficient)


def test_vector_config_round_trip() -> None:
    assert VectorConfig.from_json(VECTOR.to_json(), "here") == VECTOR


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.update(format_version=2), "format_version 2.*Upgrade: pip install --upgrade dem-hub"),
        (lambda data: data.update(format_version="1"), "format_version '1'"),
        (lambda data: data.pop("format_version"), "format_version None"),
        (lambda data: data.update(color="red"), "unknown key 'color'"),
        (lambda data: data["base"].update(color="red", size=1), "base has unknown keys 'color', 'size'"),
        (
            lambda data: data["tensors"]["layer.weight"].update(color="red"),
            "tensor 'layer.weight' has unknown key 'color'",
        ),
        (lambda data: data["tensors"]["layer.weight"].pop("norm"), "tensor 'layer.weight' is incomplete.*'norm'"),
        (lambda data: data["tensors"].update({"layer.weight": 3}), "tensor 'layer.weight' is int, not a JSON object"),
        (lambda data: data.pop("codec"), "is incomplete.*'codec'"),
        (lambda data: data.update(tensors=[]), "tensors is list, not a JSON object"),
        (lambda data: data.update(files={"../x": "0"}), r"'\.\./x'; names must be relative"),
        (lambda data: data.update(files=["x"]), "files is list, not a JSON object"),
    ],
)
def test_vector_config_is_strict(change: Any, message: str) -> None:
    data = json.loads(VECTOR.to_json())
    change(data)
    with pytest.raises(ConfigError, match=f"here.*{message}"):
        VectorConfig.from_json(json.dumps(data), "here")


@pytest.mark.parametrize("text", ["", "{", "[]", "3"])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="here is not JSON|here is .*, not a JSON object"):
        VectorConfig.from_json(text, "here")


def test_recipe_round_trip() -> None:
    assert DEMConfig.from_dict(recipe_data(), "here") == RECIPE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "model_type 'llama', not 'dem': it is a model, not a recipe"),
        ({"format_version": 2}, "format_version 2.*Upgrade"),
        ({"color": "red"}, "unknown key 'color'"),
        ({"rounding": "up"}, "rounding is 'up'; it must be one of stochastic, nearest"),
        ({"rounding": 5}, "rounding 5, which is not a text"),
        ({"rounding_seed": "1"}, "rounding_seed '1', which is not a whole number"),
        ({"dtype": 16}, "dtype 16, which is not a text or null"),
        ({"search": []}, "search .*, which is not an object or null"),
        ({"architectures": "LlamaForCausalLM"}, "architectures 'LlamaForCausalLM', which is not a list"),
        ({"architectures": [1]}, "architectures .*, which is not a list of texts"),
        ({"vectors": "me/maths"}, "vectors 'me/maths', which is not a list"),
        ({"vectors": 5}, "vectors 5, which is not a list"),
        ({"base": None}, "not a JSON object"),
        ({"base": {"repo_id": 5}}, "the repo_id 5 of a base or a vector, which is not a text"),
        ({"base": {"repo_id": "org/base", "fingerprint": 5}}, "base has fingerprint 5, which is not a text"),
        ({"vectors": [{"repo_id": "me/maths", "coefficient": "1"}]}, "coefficient '1', which is not a number"),
        ({"vectors": [{"repo_id": "me/maths", "coefficient": 1, "commit": 5}]}, "commit 5, which is not a text"),
        ({"base": {"repo_id": "org/base", "commit": "main"}}, "not 40 hex digits"),
        ({"vectors": [{"repo_id": "me/maths"}]}, "vector 0 is incomplete.*coefficient"),
        ({"vectors": [{"repo_id": "me/maths", "coefficient": 1e999}]}, "finite number"),
        ({"vectors": [{"repo_id": "me/maths", "coefficient": 1, "scale": 2}]}, "vector 0 has unknown key 'scale'"),
        ({"vectors": [{"repo_id": "me/maths", "coefficient": 1}] * 2}, "named twice in one recipe: me/maths"),
        ({"base": {"path": "/tmp"}}, "comes from the Hub and names the local path '/tmp'"),
        ({"base": {"repo_id": "/etc/base"}}, "comes from the Hub and names the local path '/etc/base'"),
        (
            {"vectors": [{"repo_id": "../maths", "coefficient": 1}]},
            r"comes from the Hub and names the local path '\.\./maths'",
        ),
        ({"auto_map": {"AutoModel": "code.Model"}}, "unknown key 'auto_map'"),
    ],
)
def test_recipe_is_strict(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DEMConfig.from_dict(recipe_data(**changes), "here")


def test_with_coefficients_keeps_the_others() -> None:
    changed = RECIPE.with_coefficients({"me/many//chat": 0.5})
    assert changed.coefficients == {"me/maths": 0.4, "me/many//chat": 0.5}
    assert replace(changed, vectors=RECIPE.vectors) == RECIPE


def test_unknown_vector() -> None:
    with pytest.raises(
        CoefficientError, match="No vector of this recipe is called 'me/math'; it has 'me/maths', 'me/many//chat'"
    ):
        RECIPE.with_coefficients({"me/math": 0.5})


def test_the_same_folder_by_two_names(tmp_path: Path) -> None:
    (tmp_path / "vector").mkdir()
    recipe = DEMConfig(BASE, (VectorRecord(str(tmp_path / "vector"), 0.4),))
    assert recipe.with_coefficients({"vector": 0.5}).vectors[0].coefficient == 0.5
    with pytest.raises(ConfigError, match="named twice"):
        DEMConfig(BASE, (VectorRecord("vector", 0.4), VectorRecord(str(tmp_path / "vector"), 0.1)))


def test_paths_are_written_relative_and_move_together(tmp_path: Path) -> None:
    for name in ("base", "vectors/maths"):
        (tmp_path / "here" / name).mkdir(parents=True)
    here = tmp_path / "here"
    recipe = DEMConfig(BaseRecord(str(here / "base")), (VectorRecord(str(here / "vectors/maths"), 0.4),))
    recipe.save_pretrained(here / "recipe")
    text = (here / "recipe/config.json").read_text()
    assert str(tmp_path) not in text
    assert '"../base"' in text
    there = here.rename(tmp_path / "there")
    moved = DEMConfig.from_pretrained(there / "recipe")
    assert (moved.base.repo_id, moved.vectors[0].repo_id) == (str(there / "base"), str(there / "vectors/maths"))


def test_what_is_told_of_a_search_has_no_paths() -> None:
    """Recipes of earlier versions called a baseline by the folder of its vector."""
    search = {"held_out": {"baselines": {"/home/ann/maths alone": 2.0, "1/N": 1.5}}, "method": "grid"}
    recipe = DEMConfig(BaseRecord("org/base"), (VectorRecord("me/maths", 0.5),), search=search)
    assert json.loads(recipe.to_json())["search"] == {
        "held_out": {"baselines": {"maths alone": 2.0, "1/N": 1.5}},
        "method": "grid",
    }


def test_saved_recipe_is_a_recipe(tmp_path: Path) -> None:
    assert not is_recipe(tmp_path)
    (tmp_path / "base").mkdir()
    recipe = replace(RECIPE, base=BaseRecord(str(tmp_path / "base"), fingerprint="f" * 64))
    recipe.save_pretrained(tmp_path / "recipe")
    assert is_recipe(tmp_path / "recipe")
    assert DEMConfig.from_pretrained(tmp_path / "recipe") == recipe
    with pytest.raises(NotFoundError, match=r"has no config\.json with a recipe") as caught:
        DEMConfig.from_pretrained(tmp_path / "base")
    assert caught.type is NotFoundError


def test_what_lies_in_the_recipes_own_folder_is_written_and_read(tmp_path: Path) -> None:
    """However often the recipe is saved there, and wherever the folder is moved; also as older versions wrote it."""
    folder = tmp_path / "recipe"
    (folder / "vectors/maths").mkdir(parents=True)
    (folder / "model").mkdir()
    base = BaseRecord(str(folder), subfolder="model")
    recipe = DEMConfig(base, (VectorRecord(str(folder), 0.4, subfolder="vectors/maths"),))
    for _ in range(2):
        recipe.save_pretrained(folder)
        assert DEMConfig.from_pretrained(folder) == recipe
    data = json.loads((folder / "config.json").read_text())
    assert data["vectors"][0]["repo_id"] == data["base"]["repo_id"] == "."
    for entry in (data["base"], data["vectors"][0]):
        entry["path"] = entry.pop("repo_id")
    (folder / "config.json").write_text(json.dumps(data))
    moved = DEMConfig.from_pretrained(folder.rename(tmp_path / "moved"))
    assert {moved.base.repo_id, moved.vectors[0].repo_id} == {str(tmp_path / "moved")}


@pytest.mark.parametrize("seed", [-(1 << 63), (1 << 64) - 1])
def test_every_seed_that_is_taken_can_be_read_again(seed: int) -> None:
    recipe = replace(RECIPE, rounding_seed=seed)
    assert DEMConfig.from_dict(json.loads(recipe.to_json()), "x", VectorSource("me/x")) == recipe


@pytest.mark.parametrize("seed", [-(1 << 63) - 1, 1 << 64, 1.5, True, "3", None])
def test_a_seed_that_could_not_be_read_again_is_refused(seed: Any) -> None:
    with pytest.raises(ConfigError, match=r"rounding_seed is .*; it must be a whole number of at most 64 bits"):
        replace(RECIPE, rounding_seed=seed)


def test_coefficients_are_copies() -> None:
    """A caller who changes them would have a recipe that says something else than its model is."""
    recipe = DEMConfig(BASE, (VectorRecord("me/maths", {"attention": 0.5, "rest": 0.1}),))
    recipe.coefficients["me/maths"]["rest"] = 7  # type: ignore[index]
    assert recipe.coefficients == {"me/maths": {"attention": 0.5, "rest": 0.1}}
