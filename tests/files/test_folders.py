"""What a folder holds is detected, and nothing is written over a user's work."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from dem_hub import DistributionVector, VectorSource, VectorStore
from dem_hub.errors import ConfigError
from dem_hub.files.folders import (
    ADAPTER,
    MERGED,
    RECIPE,
    STORE,
    VECTOR,
    WEIGHTS,
    check_output,
    has_model_weights,
    kind_of,
)
from dem_hub.files.names import SIDE_FILES, SIDECARS
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.export import estimate_export, export
from dem_hub.models.lora_export import export_adapter
from dem_hub.models.planned import PlannedModel
from tests.support.tiny_models import Models, Zoo


@pytest.fixture(scope="session")
def recipe(zoo: Zoo) -> OpenedRecipe:
    vector = str(zoo.vector("llama-tied", "bfloat16", "lowrank"))
    return open_base_and_vectors(VectorSource(str(zoo.models("llama-tied").base)), {vector: 0.5})


@pytest.fixture(scope="session")
def folders(zoo: Zoo, recipe: OpenedRecipe, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder of each kind, by the kind."""
    root = tmp_path_factory.mktemp("kinds")
    export(PlannedModel.of(recipe), root / "merged")
    recipe.recipe.save_pretrained(root / "recipe")
    VectorStore.create(root / "store", zoo.models("llama-tied").base)
    return {
        VECTOR: zoo.vector("llama-tied", "bfloat16", "lowrank"), ADAPTER: zoo.adapter("llama-tied"), STORE: root / "store",
        MERGED: root / "merged", RECIPE: root / "recipe", WEIGHTS: zoo.models("llama-tied").full,
    }  # fmt: skip


WRITERS: dict[str, Callable[[OpenedRecipe, Path], object]] = {
    VECTOR: lambda recipe, target: recipe.vectors[0].save_pretrained(target),
    ADAPTER: lambda recipe, target: export_adapter(recipe, target),
    STORE: lambda recipe, target: VectorStore.create(target, recipe.base.folder),
    MERGED: lambda recipe, target: export(PlannedModel.of(recipe), target),
    RECIPE: lambda recipe, target: recipe.recipe.save_pretrained(target),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_kind_is_known(folders: dict[str, Path], tmp_path: Path) -> None:
    assert {kind: kind_of(folder) for kind, folder in folders.items()} == {kind: kind for kind in folders}
    assert kind_of(tmp_path) == kind_of(tmp_path / "absent") == ""
    (tmp_path / "pytorch_model.bin").touch()
    assert kind_of(tmp_path) == WEIGHTS


@pytest.mark.parametrize("there", [VECTOR, ADAPTER, STORE, MERGED, RECIPE, WEIGHTS])
@pytest.mark.parametrize("kind", WRITERS)
def test_nothing_is_written_over_another_kind(
    recipe: OpenedRecipe, folders: dict[str, Path], tmp_path: Path, kind: str, there: str
) -> None:
    target = tmp_path / "target"
    shutil.copytree(folders[there], target)
    before = contents(target)
    if kind == there:
        if kind != STORE:  # which is opened, not made again
            WRITERS[kind](recipe, target)
            assert kind_of(target) == kind
        return
    with pytest.raises(
        ConfigError, match=f"target' holds {there}, and {kind} is to be written there. Choose another folder"
    ):
        WRITERS[kind](recipe, target)
    assert contents(target) == before


@pytest.mark.parametrize("kind", WRITERS)
def test_other_files_are_no_hindrance(recipe: OpenedRecipe, tmp_path: Path, kind: str) -> None:
    (tmp_path / ".git").mkdir()
    (tmp_path / "README.md").write_text("mine")
    WRITERS[kind](recipe, tmp_path)
    assert kind_of(tmp_path) == kind
    assert (tmp_path / "README.md").read_text() == "mine"


def test_nothing_is_written_over_an_input(recipe: OpenedRecipe, zoo: Zoo, llama: Models) -> None:
    vector, adapter = recipe.vectors[0].folder, zoo.adapter("llama-tied")

    def write_model(recipe: OpenedRecipe, target: Path) -> None:
        export(PlannedModel.of(recipe), target)

    def estimate_model(recipe: OpenedRecipe, target: Path) -> None:
        estimate_export(PlannedModel.of(recipe), target)

    for write in (write_model, estimate_model, export_adapter):
        with pytest.raises(ConfigError, match="is the vector '.*' itself, which a .* would replace"):
            write(recipe, vector)
        with pytest.raises(ConfigError, match="is the base itself"):
            write(recipe, llama.base)
    of_adapter = open_base_and_vectors(VectorSource(str(llama.base)), {str(adapter): 0.5})
    with pytest.raises(ConfigError, match="is the vector '.*' itself, which a LoRA adapter would replace"):
        export_adapter(of_adapter, adapter)


def test_a_store_takes_either_kind_of_vector_under_a_name(recipe: OpenedRecipe, zoo: Zoo, tmp_path: Path) -> None:
    store = VectorStore.create(tmp_path / "store", recipe.base.folder)
    for vector in (zoo.adapter("llama-tied"), recipe.vectors[0].folder):
        store.add("maths", DistributionVector.from_pretrained(vector))
    assert store["maths"].sha256 == recipe.vectors[0].sha256


@pytest.mark.parametrize("name", [*SIDE_FILES, *SIDECARS, "1_Pooling/config.json", "2_Dense/model.safetensors"])
def test_what_a_killed_run_left_is_no_hindrance_to_a_command(tmp_path: Path, name: str) -> None:
    path = tmp_path / name.replace("*", "x")
    path.parent.mkdir(exist_ok=True)
    path.touch()
    check_output(tmp_path, MERGED, overwrite=False)


@pytest.mark.parametrize("name", ["notes.txt", "vocab.txt.old", "private/vocab.txt", "1_Pooling/notes.txt", ".env"])
def test_what_a_user_has_there_is_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(ConfigError, match=f"holds files that dem_hub did not write .'{name.partition('/')[0]}'"):
        check_output(tmp_path, MERGED, overwrite=False)
    check_output(tmp_path, MERGED, overwrite=True)


def test_an_empty_folder_in_the_target_is_a_users(tmp_path: Path) -> None:
    (tmp_path / "1_Pooling").mkdir()
    with pytest.raises(ConfigError, match="did not write"):
        check_output(tmp_path, MERGED, overwrite=False)


@pytest.mark.parametrize("name", SIDECARS)
def test_a_sidecar_is_no_model(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "vector"
    shutil.copytree(folders[VECTOR], folder)
    (folder / name).touch()
    assert not has_model_weights(folder)
