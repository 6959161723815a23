"""A recipe opened: its base and vectors are the ones it names, and are written down as what they are."""

from pathlib import Path

import pytest

from dem_hub import DEMConfig, DEMModel, VectorSource
from dem_hub.errors import BaseMismatchError, NotFoundError
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.opening import open_base_and_vectors, open_config, open_recipe
from tests.support.tiny_models import Zoo, reshard


@pytest.fixture
def opened(zoo: Zoo) -> OpenedRecipe:
    vectors = {str(zoo.vector("llama-tied")): 0.3, str(zoo.adapter("llama-tied")): -0.5}
    return open_base_and_vectors(VectorSource(str(zoo.models("llama-tied").base)), vectors)


def test_what_is_written_down(zoo: Zoo, opened: OpenedRecipe) -> None:
    recipe = opened.recipe
    assert (recipe.base.repo_id, recipe.base.fingerprint) == (
        str(zoo.models("llama-tied").base),
        opened.base.fingerprint,
    )
    assert [vector.sha256 for vector in recipe.vectors] == [vector.sha256 for vector in opened.vectors]
    assert [vector.codec for vector in recipe.vectors] == ["dense", "lora"]
    assert recipe.architectures == ("LlamaForCausalLM",)
    assert recipe.dtype is None


def test_opened_again_it_is_the_same(opened: OpenedRecipe, tmp_path: Path) -> None:
    opened.recipe.save_pretrained(tmp_path)
    again = open_recipe(VectorSource(str(tmp_path)))
    assert again.recipe == opened.recipe
    assert [vector.sha256 for vector in again.vectors] == [vector.sha256 for vector in opened.vectors]


def test_base_that_moved_away(zoo: Zoo, tmp_path: Path) -> None:
    base = reshard(zoo.models("llama-tied").base, tmp_path / "base")
    recipe = open_base_and_vectors(VectorSource(str(base)), {str(zoo.vector("llama-tied")): 0.3}).recipe
    base.rename(tmp_path / "moved")
    with pytest.raises(NotFoundError, match="is not a local folder") as caught:
        open_config(recipe)
    assert caught.type is NotFoundError


def test_check_base(zoo: Zoo, tmp_path: Path) -> None:
    base = reshard(zoo.models("llama-tied").base, tmp_path / "base")
    recipe: DEMConfig = open_base_and_vectors(VectorSource(str(base)), {str(zoo.vector("llama-tied")): 0.3}).recipe
    reshard(zoo.models("llama-tied").full, base)
    with pytest.raises(BaseMismatchError, match=f"fingerprint {str(recipe.base.fingerprint)[:16]}"):
        open_config(recipe)
    assert open_config(recipe, check_base=False).recipe == recipe


def test_a_recipe_as_a_base_takes_no_vectors_of_its_own_base(zoo: Zoo, opened: OpenedRecipe, tmp_path: Path) -> None:
    opened.recipe.save_pretrained(tmp_path)
    base = zoo.models("llama-tied").base
    with pytest.raises(BaseMismatchError, match=f"was made from '{base}' .*, and this base is '{tmp_path}'"):
        DEMModel.from_pretrained(tmp_path, vectors={str(zoo.vector("llama-tied")): 0.5})
