"""A search that goes on: after a kill, and from an earlier search with other vectors or data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from dem_hub import DEMConfig, SearchResult, search_coefficients
from dem_hub.errors import ConfigError
from dem_hub.hub.references import BaseRecord
from dem_hub.merging.base_quantization import BaseQuantization
from dem_hub.search import Optuna
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from tests.support.counting_models import Counters
from tests.support.processes import run

KILLED = """
import json, os, signal, sys
import torch
from dem_hub import search_coefficients
from dem_hub.search import Optuna
from dem_hub.search.measure.loss_evaluator import LossEvaluator
request = json.loads(sys.argv[1])
def kill(number, trial):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
for method in request.pop("methods"):
    pid = os.fork()
    if not pid:
        # A forked process makes torch's pool of threads anew. Two threads that do so at once can find none.
        torch.set_num_threads(1)
        kept = os.path.join(request["cache"], method)
        search_coefficients(**{**request, "cache": kept}, method=Optuna("tpe") if method == "optuna" else method, callback=kill)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
"""


RESUMED = ["gauss_newton", "quadratic", "gradient", "optuna"]


@pytest.fixture(scope="module")
def killed(counters: Counters, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The caches of searches that were killed, by the kernel, after four trials."""
    cache = tmp_path_factory.mktemp("killed")
    request = {
        "base": str(counters.base),
        "vectors": list(counters.vectors.values()),
        "eval_datasets": counters.data,
        "max_forward": 12,
    }
    content = json.dumps({**request, "cache": str(cache), "methods": RESUMED})
    done = run(KILLED, content)
    assert done.returncode == 0, done.stderr[-3000:]
    return cache


@pytest.mark.parametrize("method", RESUMED)
def test_a_killed_search_goes_on(search: Callable[..., SearchResult], killed: Path, method: str) -> None:
    """It finds the same, and measures nothing that it had measured."""
    lines = killed / method / "measured.jsonl"
    before = lines.read_text().splitlines()
    way = Optuna("tpe") if method == "optuna" else method
    whole, rest = search(method=way, max_forward=12), search(method=way, max_forward=12, cache=killed / method)
    assert rest.trials == whole.trials
    assert rest.coefficients == whole.coefficients
    assert rest.num_forward == whole.num_forward
    after = lines.read_text().splitlines()
    assert len(before) >= 3 * 3
    assert after[: len(before)] == before
    assert len({json.loads(line)[0] for line in after}) == len(after)


def test_a_score_goes_on(counters: Counters, tmp_path: Path) -> None:
    """Scores are dear, and are filed like losses; an earlier search's cost nothing."""
    calls = []

    def length(model: Any) -> float:
        calls.append(1)
        return float(model.model.embed_tokens.weight.detach().norm())

    def search(**options: Any) -> SearchResult:
        vectors = [counters.vectors["up"], counters.vectors["down"]]
        return search_coefficients(
            counters.base, vectors, score=length, direction="minimize", max_forward=10, **options
        )

    first = search(cache=tmp_path)
    assert len(calls) == first.num_forward
    again = search(cache=tmp_path)
    assert (again.trials, again.num_forward, len(calls)) == (first.trials, first.num_forward, first.num_forward)
    grown = search(resume_from=first)
    assert grown.num_forward == len(calls) - first.num_forward


def test_a_new_vector_costs_one_forward_pass(gentle: Counters) -> None:
    """Its column of the table, and a check of what the algebra on kept logits finds."""
    vectors = list(gentle.vectors.values())
    two = search_coefficients(gentle.base, vectors[:2], gentle.data)
    three = search_coefficients(gentle.base, vectors, gentle.data, resume_from=two)
    assert three.num_forward == 1 + 1
    assert three.num_forward_held_out <= 1 + 1 + 1 + 1  # the new one alone, 1/N, common, found
    assert three.loss < two.loss
    assert three.loss < search_coefficients(gentle.base, vectors, gentle.data).loss + 2e-3
    assert three.acceptance is not None
    assert three.acceptance.contenders["before"].coefficients == (*two.best.coefficients, 0.0)


def test_a_surprise_is_looked_into(search: Callable[..., SearchResult], result: SearchResult) -> None:
    """Where vectors interact, the check shows it, and a step or two are taken, of N + 1 forward passes and a check."""
    two = search("up", "down")
    three = search(resume_from=two)
    assert three.num_forward in (1 + 1 + 4 + 1, 1 + 1 + 2 * (4 + 1))
    assert any("The kept logits promised" in note for note in three.notes)
    assert three.loss == pytest.approx(result.loss, abs=5e-3)
    assert search(resume_from=two, max_forward=2, held_out=0.25).num_forward <= 2 + 1  # a budget leaves it at the check


def test_a_new_distribution_costs_its_own_data(gentle: Counters) -> None:
    """One pass over it for the base and each vector, and a check over everything."""
    vectors = list(gentle.vectors.values())[:2]
    known = {name: gentle.data[name] for name in ("up", "down")}
    grown = search_coefficients(
        gentle.base, vectors, gentle.data, resume_from=search_coefficients(gentle.base, vectors, known)
    )
    share = grown.tokens["threes"] / sum(grown.tokens.values())
    assert grown.acceptance is not None
    returned = int(
        not grown.acceptance.is_found
    )  # a rival's losses on the search data, where it is better on the held-out data
    assert grown.num_forward == pytest.approx(3 * share + 1 + returned)


def test_dropping_a_vector_costs_a_check(gentle: Counters) -> None:
    vectors = list(gentle.vectors.values())
    three = search_coefficients(gentle.base, vectors, gentle.data)
    assert search_coefficients(gentle.base, vectors[::2], gentle.data, resume_from=three).num_forward == 1
    assert three.reweight(without=[vectors[1]]).coefficients[vectors[1]] == 0  # and an estimate nothing at all


def test_logits_of_other_data_are_no_start(gentle: Counters) -> None:
    """The known coefficients are the start then, with no table."""
    vectors = list(gentle.vectors.values())[:2]
    one, other = ({name: gentle.data[name]} for name in ("up", "down"))
    earlier = search_coefficients(gentle.base, vectors, one)
    again = search_coefficients(gentle.base, vectors, other, resume_from=earlier)
    assert again.trials[0].coefficients == earlier.best.coefficients


def test_growing_from_disk(gentle: Counters, tmp_path: Path) -> None:
    """With the logits it costs what it does in memory; from a recipe, or without them, the known coefficients are the start."""
    vectors = list(gentle.vectors.values())
    two = search_coefficients(gentle.base, vectors[:2], gentle.data)
    two.save_pretrained(tmp_path / "with", with_logits=True)
    two.save_pretrained(tmp_path / "without")
    two.config.save_pretrained(tmp_path / "recipe")

    def grow(earlier: Any) -> SearchResult:
        return search_coefficients(gentle.base, vectors, gentle.data, resume_from=earlier)

    grown = grow(tmp_path / "with")
    assert grown.num_forward == 2
    assert grown.coefficients == grow(two).coefficients
    for name in ("without", "recipe"):
        again = grow(tmp_path / name)
        assert again.trials[0].coefficients == (*two.best.coefficients, sum(two.best.coefficients) / 2)
        assert again.num_forward in (4, 5, 9, 10)  # a step, or two, and their checks; no table
        assert again.loss < two.loss
    assert grow(DEMConfig.from_pretrained(tmp_path / "recipe")).trials == again.trials


def test_logits_in_a_cache(gentle: Counters, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they stay, a search with one more vector runs neither the base nor the others alone again."""
    vectors = list(gentle.vectors.values())
    begin, begun = LossEvaluator._begin, []
    monkeypatch.setattr(LossEvaluator, "_begin", lambda self, *cell: begun.append(cell) or begin(self, *cell))
    runs = {}
    results = []
    for keep in (True, False):
        cache = tmp_path / str(keep)
        search_coefficients(gentle.base, vectors[:2], gentle.data, cache=cache, keep_logits=keep)
        assert bool(list(cache.rglob("*.safetensors"))) == keep
        begun.clear()
        results.append(search_coefficients(gentle.base, vectors, gentle.data, cache=cache, keep_logits=keep))
        runs[keep] = len(begun)
    assert runs[False] - runs[True] == (1 + 2) * len(gentle.data)
    assert results[0].coefficients == results[1].coefficients


def test_a_recipe_on_a_quantized_base_is_refused(gentle: Counters) -> None:
    """The search would measure other models."""
    recipe = DEMConfig(BaseRecord("org/base"), (), base_quantized=BaseQuantization())
    with pytest.raises(ConfigError, match=r"a quantized base \(nf4, computed in float32\)"):
        search_coefficients(gentle.base, ["me/maths-vector"], {"maths": [[5, 6, 7]]}, resume_from=recipe)


@pytest.mark.parametrize("how", ["an argument", "a config", "the base's own file"])
def test_a_model_that_computes_something_else_is_measured_again(counters: Counters, tmp_path: Path, how: str) -> None:
    """The weights are the same, and the losses are not: what a cache has is not theirs."""
    base = shutil.copytree(counters.base, tmp_path / "base")
    rope = {"rope_type": "default", "rope_theta": 3.0}
    vectors = [counters.vectors["up"]]

    def losses(cache: Path | None, **options: Any) -> dict[str, float]:
        found = search_coefficients(base, vectors, counters.data, method="grid", cache=cache, **options)
        return dict(found.best.losses)

    before = losses(tmp_path / "cache")
    options: dict[str, Any] = {}
    if how == "an argument":
        options = {"rope_parameters": rope}
    elif how == "a config":
        options = {"config": AutoConfig.from_pretrained(base, rope_parameters=rope)}
    else:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | {"rope_parameters": rope}))
    again = losses(tmp_path / "cache", **options)
    assert again == losses(None, **options)
    assert again != before
