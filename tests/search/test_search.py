"""The search as a whole: what it finds, what it costs, what it refuses, that it goes on, grows, and is read again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMConfig, DEMModel, DistributionVector, SearchResult, VectorSource, search_coefficients
from dem_hub.cli.search import result_tables
from dem_hub.errors import BaseMismatchError, CoefficientError, ConfigError, NotFoundError
from dem_hub.evaluation.likelihood import evaluate
from dem_hub.search import Grid, Optuna, Trial
from dem_hub.search.solve.local_model import LocalModel, Quadratic
from dem_hub.search.solve.objective import Objective
from tests.support.counting_models import STEPS, Counters, counting
from tests.support.tiny_models import Models, Zoo, load_tensors, reshard


@pytest.fixture(scope="module")
def result(search: Callable[..., SearchResult]) -> SearchResult:
    return search()


def fresh(counters: Counters, coefficients: dict[str, float], data: Any) -> dict[str, float]:
    model = DEMModel.from_pretrained(counters.base, vectors=coefficients, dtype="float32")
    return {name: score.loss for name, score in evaluate(model, data).items()}


def mean(losses: dict[str, float]) -> float:
    return sum(losses.values()) / len(losses)


def test_the_result(result: SearchResult, counters: Counters) -> None:
    assert result.method == "gauss_newton"
    assert list(result.coefficients) == list(counters.vectors.values())
    assert tuple(result.coefficients.values()) == result.best.coefficients
    assert result.num_forward <= 12
    assert (
        1 + 3 + 1 + 1 + 1 <= result.num_forward_held_out <= 1 + 3 + 1 + 6 + 1
    )  # base, three alone, 1/N, common and its line, found
    assert result.loss == result.best.value == min(trial.value for trial in result.trials)
    assert list(result.baselines) == ["base", *(f"{name} alone" for name in result.coefficients), "1/N", "common"]
    assert result.held_out_loss is not None
    assert result.held_out_loss < min(result.baselines.values())
    assert sum(result.mixing_ratio.values()) == pytest.approx(1)
    assert result.best in result.pareto


def test_better_on_test_data_too(result: SearchResult, counters: Counters) -> None:
    names = list(result.coefficients)
    found = mean(fresh(counters, result.coefficients, counters.test))
    assert result.acceptance is not None
    for label in ("base", "1/N", "common"):
        point = dict(zip(names, result.acceptance.contenders[label].coefficients, strict=True))
        assert found < mean(fresh(counters, point, counters.test))


def test_losses_are_those_of_a_fresh_load(search: Callable[..., SearchResult], counters: Counters) -> None:
    found = search(held_out=0)
    for trial in found.trials:
        assert trial.losses == pytest.approx(
            fresh(counters, dict(zip(found.coefficients, trial.coefficients, strict=True)), counters.data), rel=1e-6
        )


def test_search_and_held_out_share_no_document(result: SearchResult) -> None:
    assert result.acceptance is not None
    assert {name: result.tokens[name] + result.acceptance.tokens[name] for name in STEPS} == dict.fromkeys(
        STEPS, 24 * 19
    )
    assert result.tokens["up"] == 18 * 19


def test_recipe_loads(result: SearchResult, tmp_path: Path) -> None:
    result.config.save_pretrained(tmp_path)
    recipe = DEMConfig.from_pretrained(tmp_path)
    assert recipe == result.config
    assert recipe.dtype is None
    assert recipe.search is not None
    assert (recipe.search["method"], recipe.search["objective"], recipe.search["tokens"]) == (
        "gauss_newton",
        "mean",
        dict(result.tokens),
    )
    assert recipe.search["losses"] == dict(result.best.losses)
    assert result.table is not None
    assert recipe.search["base_losses"] == {name: cell.loss for name, cell in result.table.cells["base"].items()}
    assert DEMModel.from_pretrained(tmp_path).dem.coefficients == result.coefficients


def test_printed(result: SearchResult) -> None:
    text = str(result)
    assert text.splitlines()[0] == str(result.config.base)
    assert all(f"+ {value} * {name}" in text for name, value in result.coefficients.items())
    assert f"{result.method}: mean {result.loss:.5f}, in " in text


def test_saved_and_read_again(result: SearchResult, tmp_path: Path) -> None:
    result.save_pretrained(tmp_path / "found")
    again = SearchResult.from_pretrained(tmp_path / "found")
    assert again.model is not None
    assert result.model is not None
    assert again.reweight("worst") == result.reweight("worst")
    assert replace(again, model=None) == replace(result, model=None)
    assert len(again.cache) == len(result.cache)
    assert DEMModel.from_pretrained(tmp_path / "found").dem.coefficients == result.coefficients
    json.loads((tmp_path / "found" / "search_result.json").read_text())


def test_no_result_to_read(tmp_path: Path, result: SearchResult) -> None:
    with pytest.raises(NotFoundError, match="has no search_result.json") as caught:
        SearchResult.from_pretrained(tmp_path)
    assert caught.type is NotFoundError
    result.save_pretrained(tmp_path)
    path = tmp_path / "search_result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(ConfigError, match="Upgrade"):
        SearchResult.from_pretrained(tmp_path)
    path.write_text(json.dumps({"format_version": 1, "trials": []}))
    with pytest.raises(ConfigError, match="is not a whole search result"):
        SearchResult.from_pretrained(tmp_path)


def test_reweighting_costs_nothing_and_is_true(counters: Counters, search: Callable[..., SearchResult]) -> None:
    """What is found for other weights is nearly what a search with these weights finds, and better for them than what was found."""
    plain, weights = search(held_out=0), {"up": 3.0}
    size = len(plain.cache)
    wished = plain.reweight(weights=weights)
    assert len(plain.cache) == size
    assert wished.config.coefficients == wished.coefficients
    objective = Objective("mean", weights)
    truth, before = (
        objective.value(fresh(counters, point, counters.data)) for point in (wished.coefficients, plain.coefficients)
    )
    assert truth < before
    assert truth == pytest.approx(search(held_out=0, weights=weights).loss, abs=0.01)
    assert wished.value == pytest.approx(truth, abs=0.02)


def test_reweighting_for_other_wishes(result: SearchResult, counters: Counters) -> None:
    up, down, threes = counters.vectors.values()
    assert result.reweight().value <= result.loss + 1e-3
    gone = result.reweight(without=[os.path.relpath(down)], weights={"down": 0.0})
    assert gone.coefficients[down] == 0
    assert gone.coefficients[up] > 0
    little = result.reweight(max_sum=0.3)
    assert sum(little.coefficients.values()) <= 0.3 + 1e-9
    tight = result.reweight(bounds={threes: (0.0, 0.1)})
    assert tight.coefficients[threes] <= 0.1
    worst = result.reweight("worst")
    assert max(worst.losses.values()) <= max(result.reweight().losses.values()) + 1e-6
    with pytest.raises(ConfigError, match="This search has no vector 'other'"):
        result.reweight(without=["other"])


def test_reweighting_without_negative_coefficients(result: SearchResult) -> None:
    """Of losses whose minimum is known, and below 0 for one vector."""
    best, matrix = torch.tensor([0.5, -0.3, 0.4], dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    bowl = Quadratic(1.0 + float(best @ best) / 2, -best, matrix)
    known = replace(result, model=LocalModel(tuple(result.coefficients), (0.0, 0.0, 0.0), {"up": bowl}))
    assert list(known.reweight(bounds=(-1.0, 1.0)).coefficients.values()) == pytest.approx([0.5, -0.3, 0.4])
    assert list(known.reweight(bounds=(0.0, 1.0)).coefficients.values()) == pytest.approx([0.5, 0.0, 0.4])


def test_reweighting_for_what_is_gained(result: SearchResult) -> None:
    """Against a brute force over the same quadratics."""
    assert result.table is not None
    assert result.model is not None
    base = {name: cell.loss for name, cell in result.table.cells["base"].items()}
    gained = result.reweight("improvement")
    axis = torch.linspace(0, 1.5, 16).tolist()
    points = [(x, y, z) for x in axis for y in axis for z in axis]
    assert (
        gained.value <= min(Objective("improvement").value(result.model.losses(point), base) for point in points) + 1e-9
    )


def test_a_method_without_statistics(search: Callable[..., SearchResult]) -> None:
    found = search(method="uniform", max_forward=3)
    with pytest.raises(ConfigError, match="method='uniform' leaves no statistics"):
        found.reweight()


KILLED = """
import json, os, signal, sys
from dem_hub import search_coefficients
from dem_hub.search import Optuna
request = json.loads(sys.argv[1])
def kill(number, trial):
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
for method in request.pop("methods"):
    pid = os.fork()  # the libraries are loaded once
    if not pid:
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
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # as there are several at once
    done = subprocess.run(
        [sys.executable, "-c", KILLED, content], env=environment, capture_output=True, text=True, check=False
    )
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


def test_a_score_that_counts(counters: Counters) -> None:
    """An accuracy, as an evaluation harness gives one: in steps, with no slope."""
    vectors = [counters.vectors[name] for name in STEPS]

    def accuracy(model: Any) -> float:
        rows = torch.tensor([row for rows in counters.data.values() for row in rows])
        with torch.no_grad():
            told = model(rows).logits[:, :-1].argmax(-1)
        return float((told == rows[:, 1:]).float().mean())

    found = search_coefficients(counters.base, vectors, score=accuracy, method=Optuna("random"), max_forward=12)
    assert -found.loss == max(-trial.value for trial in found.trials)
    assert -found.loss > -found.trials[0].value  # the base
    assert -found.loss == accuracy(DEMModel.from_pretrained(counters.base, vectors=found.coefficients, dtype="float32"))


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


def test_a_surprise_is_looked_into(search: Callable[..., SearchResult]) -> None:
    """Where vectors interact, the check shows it, and a step or two are taken, of N + 1 forward passes and a check."""
    three = search(resume_from=search("up", "down"))
    assert three.num_forward in (1 + 1 + 4 + 1, 1 + 1 + 2 * (4 + 1))
    assert any("The kept logits promised" in note for note in three.notes)
    assert three.loss == pytest.approx(search().loss, abs=5e-3)
    assert (
        search(resume_from=search("up", "down"), max_forward=2, held_out=0.25).num_forward <= 2 + 1
    )  # a budget leaves it at the check


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


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_any_score(counters: Counters, direction: str) -> None:
    """A score of the model itself, with a known optimum: how near a weight is to what half of both vectors gives."""
    vectors = [counters.vectors[name] for name in ("up", "down")]
    wanted = DEMModel.from_pretrained(
        counters.base, vectors=dict.fromkeys(vectors, 0.5), dtype="float32"
    ).model.embed_tokens.weight.detach()

    def score(model: Any) -> float:
        distance = float(((model.model.embed_tokens.weight.detach() - wanted) ** 2).sum())
        return distance if direction == "minimize" else -distance

    found = search_coefficients(counters.base, vectors, score=score, direction=direction)
    assert found.method == "quadratic"
    assert list(found.coefficients.values()) == pytest.approx([0.5, 0.5], abs=1e-2)
    assert found.num_forward <= 25 + 1
    assert found.notes[0].startswith("auto: quadratic, for a score")


@pytest.mark.parametrize("method", ["gauss_newton", "quadratic", "gradient"])
def test_two_vectors_that_are_the_same(counters: Counters, tmp_path: Path, method: str) -> None:
    """The singular case: they share what one of them would have had, and it is said."""
    twin = tmp_path / "up-twin"
    twin.mkdir()
    for path in Path(counters.vectors["up"]).iterdir():
        (twin / path.name).write_bytes(path.read_bytes())
    data = {"up": counters.data["up"]}
    both = search_coefficients(counters.base, [counters.vectors["up"], str(twin)], data, held_out=0, method=method)
    alone = search_coefficients(counters.base, [counters.vectors["up"]], data, held_out=0, bounds=(0, 3))
    first, second = both.coefficients.values()
    assert first == pytest.approx(second, abs=1e-3 if method != "quadratic" else 0.5)
    assert both.loss == pytest.approx(alone.loss, abs=5e-3)
    assert any("have cosine 1.00: near-duplicates" in note for note in both.notes)


@pytest.mark.parametrize("method", ["gauss_newton", "quadratic", "gradient"])
@pytest.mark.parametrize("low", [0.0, -0.5])
def test_a_harmful_vector(counters: Counters, tmp_path: Path, low: float, method: str) -> None:
    """The opposite of a good vector: its coefficient goes to the lower bound, 0 or negative."""
    base, up = (load_tensors(folder) for folder in (counters.base, counters.base.parent / "full-up"))
    opposite = {name: 2 * base[name] - up[name] for name in base}
    reshard(counters.base, tmp_path / "full", change=lambda tensors: tensors.update(opposite))
    DistributionVector.extract(counters.base, tmp_path / "full", codec="dense", dtype="float32").save_pretrained(
        tmp_path / "bad"
    )
    vectors = [counters.vectors["up"], str(tmp_path / "bad")]
    found = search_coefficients(counters.base, vectors, {"up": counting(1, 60, 4)}, bounds=(low, 1.0), method=method)
    assert found.coefficients[vectors[1]] == pytest.approx(low, abs=1e-6)
    assert found.coefficients[vectors[0]] == pytest.approx(1.0, abs=1e-6)
    assert any("bad' is dead: on 'up'" in note for note in found.notes)
    assert found.acceptance is not None
    assert "common" in found.acceptance.contenders


def test_a_wrong_answer_is_not_accepted(search: Callable[..., SearchResult], counters: Counters) -> None:
    """Validation text of another kind than the held-out one: the best of the obvious is returned, and said."""
    found = search("up", "down", data={"text": counters.data["down"]}, held_out={"text": counters.data["up"]})
    assert found.acceptance is not None
    assert not found.acceptance.is_found
    assert found.held_out_loss == min(one.value for one in found.acceptance.contenders.values())
    assert any("is better than what was found" in note for note in found.notes)
    assert tuple(found.coefficients.values()) == found.acceptance.contenders[found.acceptance.chosen].coefficients


@pytest.fixture(scope="module")
def line(counters: Counters) -> list[float]:
    """The loss of two vectors on the test text, by their common coefficient, from 0 to 1.5 in steps of 0.1."""
    vectors = [counters.vectors[name] for name in ("up", "down")]
    return [mean(fresh(counters, dict.fromkeys(vectors, level / 10), counters.test)) for level in range(16)]


@pytest.mark.parametrize("method", ["gauss_newton", "gradient", "grid", "optuna"])
def test_the_common_coefficient_is_a_rival_of_every_method(
    search: Callable[..., SearchResult], counters: Counters, line: list[float], method: str
) -> None:
    """As good as the best of a fine line, or better."""
    common = search("up", "down", method=method, max_forward=9, held_out=counters.test).baselines["common"]
    assert min(line) - 0.01 < common <= min(line) + 5e-4


def test_a_vector_that_is_much_longer(counters: Counters, tmp_path: Path) -> None:
    base, up = (load_tensors(folder) for folder in (counters.base, counters.base.parent / "full-up"))
    longer = {name: base[name] + 8 * (up[name] - base[name]) for name in base}
    reshard(counters.base, tmp_path / "full", change=lambda tensors: tensors.update(longer))
    DistributionVector.extract(counters.base, tmp_path / "full", codec="dense", dtype="float32").save_pretrained(
        tmp_path / "long"
    )
    vectors = [counters.vectors["down"], counters.vectors["threes"], str(tmp_path / "long")]
    found = search_coefficients(
        counters.base, vectors, {"up": counters.data["up"]}, method=Grid((0.0, 0.1)), max_forward=2
    )
    assert [note for note in found.notes if "has norm" in note and f"'{tmp_path / 'long'}'" in note]


def test_the_fewer_the_tokens_the_more_alike_the_coefficients(counters: Counters) -> None:
    vectors = [counters.vectors[name] for name in ("up", "down")]

    def apart(rows: int) -> float:
        data = {"up": counters.data["up"][:rows]}
        found = search_coefficients(counters.base, vectors, data, held_out=0, bounds=(-1.0, 1.5))
        first, second = found.coefficients.values()
        return abs(first - second)

    assert apart(2) < apart(24)


def test_nothing_that_is_finite(counters: Counters) -> None:
    """No trial is called the best where all of them diverged."""
    vectors = [counters.vectors["up"]]
    with pytest.raises(CoefficientError, match="None of 12 trials is finite, not even with the coefficients"):
        search_coefficients(counters.base, vectors, score=lambda model: float("nan"), method="uniform")


def test_packing_shares_windows_and_no_documents(search: Callable[..., SearchResult], counters: Counters) -> None:
    """Documents of 20 tokens and their ends, in windows of 64: 18 to search on, 6 held out."""
    found = search("up", data={"up": counters.data["up"]}, packing=True, max_length=64)
    assert found.acceptance is not None
    assert found.tokens == {"up": 18 * 21 - 6}  # of each window, all but the first
    assert found.acceptance.tokens == {"up": 6 * 21 - 2}


def test_nothing_held_out(search: Callable[..., SearchResult]) -> None:
    found = search(held_out=0)
    assert (found.acceptance, found.num_forward_held_out) == (None, 0.0)
    assert any("Not accepted on held-out data" in note for note in found.notes)


def test_few_tokens_are_warned_about(result: SearchResult, search: Callable[..., SearchResult]) -> None:
    assert any("tokens are few for 3 coefficients" in note for note in result.notes)
    many = search("up", data={"up": counting(1, 600, 4)}, method="uniform", max_forward=2)
    assert not any("are few" in note for note in many.notes)


def test_batches_do_not_matter(search: Callable[..., SearchResult], result: SearchResult) -> None:
    assert search(batch_size=3).best.coefficients == pytest.approx(result.best.coefficients, abs=1e-4)


def test_a_score_without_a_name_is_not_taken_for_another(counters: Counters, tmp_path: Path) -> None:
    """All lambdas are called alike, and what one found is nothing to the next."""
    vectors = [counters.vectors["up"]]
    for wanted in (1.0, 0.0):
        found = search_coefficients(
            counters.base,
            vectors,
            score=lambda model, wanted=wanted: -abs(next(iter(model.dem.coefficients.values())) - wanted),
            method=Grid((0.0, 1.0)),
            cache=tmp_path / "cache",
        )
        assert list(found.coefficients.values()) == [wanted]


def test_callback_sees_each_trial(search: Callable[..., SearchResult]) -> None:
    seen: list[tuple[int, Trial]] = []
    found = search(
        method=Grid((0.0, 1.0)), max_forward=3, held_out=0, callback=lambda number, trial: seen.append((number, trial))
    )
    assert seen == list(enumerate(found.trials))


def test_texts_are_tokenized_with_the_base_tokenizer(counters: Counters) -> None:
    base = VectorSource(str(counters.base))
    found = search_coefficients(base, [counters.vectors["up"]], {"words": ["w1 w2 w3", "w4 w5 w6 w7"]}, held_out=0)
    assert found.tokens == {"words": 5}


def test_searching_in_bfloat16(counters: Counters) -> None:
    found = search_coefficients(
        counters.base, list(counters.vectors.values()), counters.data, dtype="bfloat16", held_out=0
    )
    model = DEMModel.from_pretrained(counters.base, vectors=found.coefficients, dtype="bfloat16")
    assert found.best.losses == pytest.approx({k: s.loss for k, s in evaluate(model, counters.data).items()}, rel=1e-6)
    assert found.loss < min(trial.value for trial in found.trials[:4])


def test_sequence_to_sequence(tmp_path: Path) -> None:
    import transformers as t

    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2, "vocab_size": 32}
    model = t.T5ForConditionalGeneration(t.T5Config(**sizes, decoder_start_token_id=0, pad_token_id=0))
    model.save_pretrained(tmp_path / "base")
    generator = torch.Generator().manual_seed(1)
    rows = [
        {"input_ids": row, "labels": row[::-1]} for row in torch.randint(1, 32, (32, 6), generator=generator).tolist()
    ]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(15):
        model(**{name: torch.tensor([row[name] for row in rows]) for name in ("input_ids", "labels")}).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path / "full")
    DistributionVector.extract(tmp_path / "base", tmp_path / "full", codec="dense", dtype="float32").save_pretrained(
        tmp_path / "reverse"
    )
    found = search_coefficients(tmp_path / "base", [str(tmp_path / "reverse")], {"reverse": rows})
    assert found.coefficients[str(tmp_path / "reverse")] > 0.5
    assert found.tokens == {"reverse": 24 * 6}
    assert found.loss < found.trials[0].value


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no vectors": ({"vectors": []}, "needs vectors and eval_datasets; it was given 0 and 1"),
    "no data": ({"eval_datasets": {}}, "it was given 1 and 0"),
    "one vector, not in a list": (
        {"vectors": "chat-lora"},
        "vectors is 'chat-lora', one name; give a list of names: \\['chat-lora'\\]",
    ),
    "data without a name": (
        {"eval_datasets": "maths.jsonl"},
        "eval_datasets is 'maths.jsonl'; give data by name: {'maths': 'maths.jsonl'}",
    ),
    "rows without a name": ({"eval_datasets": [[1, 2]]}, "eval_datasets is list; give data by name"),
    "no trials": ({"max_forward": 0}, "max_forward is 0; it must be 1 or more"),
    "direction": ({"direction": "up"}, "direction is 'up'"),
    "method": ({"method": "magic"}, "method is 'magic'"),
    "objective": ({"objective": "best"}, "objective is 'best'"),
    "weights": ({"weights": {"other": 1.0}}, "weights name 'other'; the distributions are 'maths'"),
    "share": ({"held_out": 1.5}, "held_out is 1.5; it must be a share"),
    "data and a score": ({"score": float}, "there are eval_datasets and a score"),
    "two weights": (
        {"objective": Objective("mean", {"maths": 2.0}), "weights": {"maths": 1.0}},
        "the objective has weights of its own",
    ),
    "bounds": ({"bounds": [(0, 1), (0, 1)]}, "give one \\(lower, upper\\) pair, or one for each of 1 vectors"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_before_anything_is_loaded(changes: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"vectors": ["me/maths"], "eval_datasets": {"maths": [[1, 2]]}, **changes}
    with pytest.raises(ConfigError, match=message):
        search_coefficients("org/base", **arguments)


def test_a_distribution_with_nothing_to_score(search: Callable[..., SearchResult], counters: Counters) -> None:
    with pytest.raises(
        ConfigError, match="'empty': there is nothing to score(.|\n)*'short': there is nothing to score"
    ):
        search(data={**counters.data, "empty": [], "short": [[1]]})


def test_held_out_data_of_another_distribution(search: Callable[..., SearchResult], counters: Counters) -> None:
    with pytest.raises(ConfigError, match="'upp': held out, and not searched on"):
        search("up", held_out={"upp": counters.data["up"]})


def test_a_distribution_shorter_than_a_window(search: Callable[..., SearchResult], counters: Counters) -> None:
    """It is scored as it is; one window cannot be held out, which is said."""
    found = search("up", data={"tiny": [[1, 2, 3]]})
    assert found.tokens == {"tiny": 2}
    assert any("there is none of 'tiny' (2 tokens to search on)" in note for note in found.notes)
    assert "(one window)" in str(result_tables(found)[0])


def test_a_vector_of_another_base(zoo: Zoo, llama: Models, counters: Counters) -> None:
    with pytest.raises(BaseMismatchError):
        search_coefficients(counters.base, [str(zoo.vector("llama-untied"))], counters.data)


def test_a_vector_named_twice(counters: Counters) -> None:
    with pytest.raises(ConfigError, match="Vectors named twice: .*up"):
        search_coefficients(counters.base, [counters.vectors["up"]] * 2, counters.data)


def test_picture(result: SearchResult, tmp_path: Path) -> None:
    assert result.plot(tmp_path / "search.png").read_bytes().startswith(b"\x89PNG")
