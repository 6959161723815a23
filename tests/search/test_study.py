"""The search: never worse than what anyone would try first, the same for the same seed, and its recipe loads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from models import Zoo, load_tensors

from dem_hub import DEMConfig, DEMModel, VectorSource, search_coefficients
from dem_hub.errors import ConfigError
from dem_hub.search.objective import evaluate
from dem_hub.search.study import UPPER_BOUND, SearchResult, Trial, first_points

TRIALS = 8


@pytest.fixture(scope="module")
def data() -> dict[str, list[list[int]]]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randint(low, high, (6, 20), generator=generator).tolist() for name, low, high in (("low", 0, 20), ("high", 30, 64))}


@pytest.fixture(scope="module")
def search(zoo: Zoo, data: dict[str, list[list[int]]]) -> Callable[..., SearchResult]:
    base = zoo.models("llama-tied", "float32").base
    vectors = [str(zoo.vector("llama-tied", "float32", kind)) for kind in ("dense", "lowrank")]
    return lambda **options: search_coefficients(base, vectors, data, **{"n_trials": TRIALS, **options})


@pytest.fixture(scope="module")
def result(search: Callable[..., SearchResult]) -> SearchResult:
    return search()


@pytest.mark.parametrize(
    ("count", "points"),
    [(1, [(0.0,), (1.0,), (0.5,)]), (2, [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 1.0)])],
)
def test_first_points(count: int, points: list[tuple[float, ...]]) -> None:
    assert first_points(count) == points


def test_first_points_come_first(result: SearchResult) -> None:
    assert [trial.coefficients for trial in result.trials[:5]] == first_points(2)
    assert len(result.trials) == TRIALS
    assert all(0 <= value <= UPPER_BOUND for trial in result.trials for value in trial.coefficients)


def test_best_is_never_worse_than_the_first_points(result: SearchResult) -> None:
    assert result.best.value <= min(trial.value for trial in result.trials[:5])
    assert tuple(result.config.coefficients.values()) == result.best.coefficients


def test_losses_are_those_of_a_fresh_load(zoo: Zoo, data: dict[str, list[list[int]]], result: SearchResult) -> None:
    base = zoo.models("llama-tied", "float32").base
    for trial in (result.trials[3], result.best):
        model = DEMModel.from_pretrained(base, vectors=dict(zip(result.config.coefficients, trial.coefficients, strict=True)))
        expected = {name: score.loss for name, score in evaluate(model, data).items()}
        assert trial.losses == pytest.approx(expected, rel=1e-7)


def test_same_seed_same_trials(search: Callable[..., SearchResult], result: SearchResult) -> None:
    assert search().trials == result.trials
    assert search(seed=1).trials[:5] == result.trials[:5]
    assert search(seed=1).trials[5:] != result.trials[5:]


def test_recipe_loads(result: SearchResult, tmp_path: Path) -> None:
    result.config.save_pretrained(tmp_path / "recipe")
    recipe = DEMConfig.from_pretrained(tmp_path / "recipe")
    assert recipe.coefficients == result.config.coefficients
    assert recipe.search == result.config.search
    assert recipe.search is not None
    assert (recipe.search["n_trials"], recipe.search["seed"], recipe.search["tokens"]) == (TRIALS, 0, {"low": 6 * 19, "high": 6 * 19})
    assert recipe.search["losses"] == dict(result.best.losses)
    assert recipe.search["base_losses"] == dict(result.trials[0].losses)
    assert DEMModel.from_pretrained(tmp_path / "recipe").dem.coefficients == result.config.coefficients


def test_callback_sees_each_trial(search: Callable[..., SearchResult]) -> None:
    seen: list[tuple[int, Trial]] = []
    found = search(n_trials=3, callback=lambda number, trial: seen.append((number, trial)))
    assert seen == list(enumerate(found.trials))


def test_texts_are_tokenised_with_the_base_tokenizer(zoo: Zoo) -> None:
    base = VectorSource(str(zoo.models("llama-tied", "float32").base))
    found = search_coefficients(base, [str(zoo.vector("llama-tied", "float32"))], {"words": ["w1 w2 w3", "w4 w5 w6"]}, n_trials=1)
    assert found.trials[0].coefficients == (0.0,)
    assert found.config.search is not None
    assert found.config.search["tokens"] == {"words": 4}


def test_searching_in_bfloat16(zoo: Zoo, data: dict[str, list[list[int]]]) -> None:
    models = zoo.models("llama-tied")
    found = search_coefficients(models.base, [str(zoo.vector("llama-tied"))], data, n_trials=2)
    assert found.config.dtype is None
    model = DEMModel.from_pretrained(models.base, vectors=dict(zip(found.config.coefficients, (1.0,), strict=True)))
    assert torch.equal(model.model.norm.weight, load_tensors(models.full)["model.norm.weight"])


@pytest.mark.parametrize(("changes", "counts"), [({"vectors": []}, "0 and 1"), ({"eval_datasets": {}}, "1 and 0")], ids=["vectors", "data"])
def test_nothing_to_search(zoo: Zoo, changes: dict[str, Any], counts: str) -> None:
    arguments: dict[str, Any] = {"vectors": ["me/maths"], "eval_datasets": {"maths": [[1, 2]]}, **changes}
    with pytest.raises(ConfigError, match=f"needs vectors and eval_datasets; it was given {counts}"):
        search_coefficients(zoo.models("llama-tied").base, **arguments)


def test_no_trials(zoo: Zoo) -> None:
    with pytest.raises(ConfigError, match="n_trials is 0; it must be 1 or more"):
        search_coefficients(zoo.models("llama-tied").base, [str(zoo.vector("llama-tied"))], {"maths": [[1, 2]]}, n_trials=0)
