"""What a server is given to load, against `dem-hub merge`."""

import math
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub.errors import BaseMismatchError, ConfigError
from dem_hub.hub.client import HubOptions
from dem_hub.hub.references import VectorSource
from dem_hub.merging.merge import Merge
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.export import export
from dem_hub.models.planned import PlannedModel
from dem_hub.numerics import passes
from dem_hub.serving.served_weights import merged_weights, open_served
from tests.support.tiny_models import VOCABULARY, Models, Zoo, load_tensors

CPU = torch.device("cpu")


@pytest.fixture
def recipe(zoo: Zoo, llama: Models, tmp_path: Path) -> Path:
    vectors = {
        str(zoo.vector("llama-tied", "bfloat16", "dense")): 0.4,
        str(zoo.vector("llama-tied", "bfloat16", "lowrank")): 0.3,
    }
    opened = open_base_and_vectors(VectorSource(str(llama.base)), vectors)
    opened.recipe.save_pretrained(tmp_path / "dem")
    return tmp_path / "dem"


def weights(model: Path, recipe: Path | None, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    opened = open_served(VectorSource(str(model)), None if recipe is None else str(recipe), HubOptions())
    return dict(merged_weights(opened, dtype=dtype, device=CPU, vocabulary=VOCABULARY))


@pytest.mark.parametrize("on_base", [False, True], ids=["recipe", "base"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_same_bits_as_an_export(llama: Models, recipe: Path, tmp_path: Path, dtype: str, on_base: bool) -> None:
    opened = open_served(VectorSource(str(recipe)), None, HubOptions())
    export(PlannedModel.of(opened, dtype=dtype), tmp_path / "merged")
    served = (
        weights(llama.base, recipe, getattr(torch, dtype)) if on_base else weights(recipe, None, getattr(torch, dtype))
    )
    expected = load_tensors(tmp_path / "merged")
    assert set(served) == set(expected)
    for name, tensor in served.items():
        assert tensor.dtype == expected[name].dtype and torch.equal(tensor, expected[name]), name


def test_a_rank_merges_what_it_keeps(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM's weight loaders divide tensors: by rows, by columns, or not at all; some are for another rank."""
    whole = weights(recipe, None, torch.bfloat16)
    merged = 0
    tensor = Merge.tensor

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal merged
        result = tensor(*arguments)
        merged += result.numel()
        return result

    monkeypatch.setattr(Merge, "tensor", counted)
    opened = open_served(VectorSource(str(recipe)), None, HubOptions())
    divided = merged_weights(opened, dtype=torch.bfloat16, device=CPU, vocabulary=VOCABULARY, ranks=2)
    kept = differ = 0
    for name, given in divided:
        if ".layers.0." in name:
            continue
        dim = int(name.endswith(("o_proj.weight", "down_proj.weight")))
        expected = whole[name]
        if expected.ndim == 2:
            half = expected.shape[dim] // 2
            given, expected = given.narrow(dim, half, half), expected.narrow(dim, half, half)
        parameter = torch.empty_like(expected)
        parameter.copy_(given)
        # Of a product of factors the last bits depend on how much of it is computed, and with them a rounding.
        torch.testing.assert_close(parameter, expected, rtol=2**-7, atol=0)
        differ += int((parameter != expected).sum())
        kept += parameter.numel()
    assert merged == kept
    assert differ <= 1e-3 * kept


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float16])
def test_the_default_dtype_of_the_server_changes_nothing(recipe: Path, default: torch.dtype) -> None:
    """vLLM loads with its own dtype as torch's default."""
    expected = weights(recipe, None, torch.bfloat16)
    torch.set_default_dtype(default)
    try:
        served = weights(recipe, None, torch.bfloat16)
    finally:
        torch.set_default_dtype(torch.float32)
    for name, tensor in served.items():
        assert torch.equal(tensor, expected[name]), name


def test_the_cores_merge_while_the_server_copies(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies of the server on torch's threads would take the cores' time. Afterwards torch has its threads again."""
    opened = open_served(VectorSource(str(recipe)), None, HubOptions())
    merging = set()
    tensor = Merge.tensor

    def noted(*arguments: Any) -> torch.Tensor:
        merging.add(threading.current_thread().name)
        return tensor(*arguments)

    monkeypatch.setattr(Merge, "tensor", noted)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        given = merged_weights(opened, dtype=torch.bfloat16, device=CPU, vocabulary=VOCABULARY)
        assert {torch.get_num_threads() for _ in given} == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert threading.main_thread().name not in merging


def test_the_passes_are_chosen_for_all_that_is_merged(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first tensor is merged like the last."""
    opened = open_served(VectorSource(str(recipe)), None, HubOptions())
    monkeypatch.setattr(passes, "_elements", 0)
    monkeypatch.setattr(passes, "_expected", 0)
    given = merged_weights(opened, dtype=torch.bfloat16, device=CPU, vocabulary=VOCABULARY)
    next(given)
    assert passes._expected >= sum(math.prod(info.shape) for info in opened.base.checkpoint.values())
    given.close()  # type: ignore[attr-defined]


def test_a_recipe_for_another_base_is_refused(zoo: Zoo, recipe: Path) -> None:
    other = zoo.models("llama-untied").base
    with pytest.raises(BaseMismatchError, match="config and the tokenizer of '.*llama-untied.*' is for '.*llama-tied"):
        weights(other, recipe, torch.bfloat16)


def test_a_base_without_a_recipe_is_refused(llama: Models) -> None:
    with pytest.raises(ConfigError, match="is not a recipe, so there is nothing to merge"):
        weights(llama.base, None, torch.bfloat16)


def test_another_recipe_takes_the_place_of_the_first(zoo: Zoo, llama: Models, recipe: Path, tmp_path: Path) -> None:
    """`reload_weights` names it as the model, while the loader still has the first."""
    vectors = {str(zoo.vector("llama-tied", "bfloat16", "dense")): -0.2}
    open_base_and_vectors(VectorSource(str(llama.base)), vectors).recipe.save_pretrained(tmp_path / "other")
    served = weights(tmp_path / "other", recipe, torch.bfloat16)
    expected = weights(tmp_path / "other", None, torch.bfloat16)
    first = weights(llama.base, recipe, torch.bfloat16)
    name = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(served[name], expected[name]) and not torch.equal(served[name], first[name])


def test_new_tokens_need_a_model_with_their_rows(llama: Models, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Merge, "vocabulary", property(lambda merge: VOCABULARY + 2))
    with pytest.raises(ConfigError, match="the merged vocabulary has 66 rows, and the server's model 64"):
        weights(recipe, None, torch.bfloat16)
