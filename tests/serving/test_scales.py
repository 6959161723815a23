"""Coefficients as llama.cpp takes them: the names of the files, and what it cannot be told."""

from dataclasses import replace
from pathlib import Path

import pytest

from dem_hub.errors import AdapterError, ConfigError
from dem_hub.hub.references import BaseRecord
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.records import VectorRecord
from dem_hub.serving.scales import scales_of


def opened(*vectors: VectorRecord) -> OpenedRecipe:
    """A recipe of which nothing but the coefficients is looked at."""
    recipe = DEMConfig(BaseRecord("org/base"), vectors)
    return OpenedRecipe(recipe, None, ())  # type: ignore[arg-type]


def test_each_vector_has_a_file_of_its_own() -> None:
    records = [
        VectorRecord("me/maths", 0.4),
        VectorRecord("other/maths", 0.3),
        VectorRecord("me/all", 1, subfolder="a b"),
    ]
    found = scales_of(opened(*records), Path("loras"))
    assert found.scales == (
        (Path("loras/maths.gguf"), 0.4), (Path("loras/maths-2.gguf"), 0.3), (Path("loras/a-b.gguf"), 1.0),
    )  # fmt: skip


def test_coefficients_by_group_are_refused() -> None:
    record = VectorRecord("me/maths", {"attention": 0.4, "rest": 0.3})
    with pytest.raises(AdapterError, match="'me/maths' has attention 0.4, rest 0.3"):
        scales_of(opened(record), Path("loras"))


@pytest.mark.parametrize("folder", ["a,b", "a:b"])
def test_a_path_that_llama_cpp_would_divide_is_refused(folder: str) -> None:
    found = scales_of(opened(replace(VectorRecord("me/maths", 0.4))), Path(folder))
    with pytest.raises(ConfigError, match="where llama.cpp divides its arguments"):
        _ = found.arguments
