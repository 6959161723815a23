"""Coefficients by groups: found, kept only where held-out data says so, and used all the way."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMConfig, DEMModel, DistributionVector, SearchResult, search_coefficients
from dem_hub.cli.app import main
from dem_hub.errors import ConfigError
from dem_hub.evaluation.windows import Window
from dem_hub.merging.groups import groups_of
from dem_hub.search import Trial
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.coordinates import Coordinates
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from dem_hub.search.per_group import ONE
from tests.support.counting_models import Counters
from tests.support.fresh_losses import fresh, mean
from tests.support.tiny_models import load_tensors, reshard

GROUPS = ("embedding", "attention", "mlp", "other")


@pytest.fixture(scope="module")
def kept(search: Callable[..., SearchResult], counters: Counters) -> SearchResult:
    """Held out is as much as the test text, and so the groups' gain is more than its error."""
    return search("up", "down", held_out=counters.test, granularity="group")


@pytest.fixture(scope="module")
def finer(counters: Counters) -> LossEvaluator:
    vectors = dict.fromkeys(list(counters.vectors.values())[:2], 0.0)
    model = DEMModel.from_pretrained(counters.base, vectors=vectors, dtype="float32")
    data = {
        name: [Window(tuple(row), tuple(row), i) for i, row in enumerate(rows)] for name, rows in counters.data.items()
    }
    return LossEvaluator(model, data, MeasurementCache()).at(Coordinates(model, (GROUPS, GROUPS)))


@pytest.fixture(scope="module")
def narrow(counters: Counters, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What "down" has learnt in its attention alone, as most LoRAs do."""
    root = tmp_path_factory.mktemp("narrow")
    learned = load_tensors(counters.base.parent / "full-down")
    part = {name: tensor for name, tensor in learned.items() if "self_attn" in name}
    reshard(counters.base, root / "full", change=lambda tensors: tensors.update(part))
    DistributionVector.extract(counters.base, root / "full", codec="dense", dtype="float32").save_pretrained(
        root / "attention"
    )
    return str(root / "attention")


def test_coordinates(finer: LossEvaluator, counters: Counters) -> None:
    """A point that is the same for all groups is the point of whole vectors, and known as that."""
    up, down, _ = counters.vectors.values()
    place = finer.coordinates
    plain = Coordinates(place.model)
    point = (0.1, 0.2, 0.3, 0.4, 0.0, 0.0, 0.5, 0.0)
    assert place.names == tuple(f"{vector} [{group}]" for vector in (up, down) for group in GROUPS)
    assert place.coefficients(point) == {
        up: dict(zip(GROUPS, point[:4], strict=True)),
        down: dict(zip(GROUPS, point[4:], strict=True)),
    }
    assert place.key((0.3,) * 4 + (0.7,) * 4) == plain.key((0.3, 0.7))
    assert place.key((0.0,) * 8) == plain.key((0.0, 0.0)) == ""
    assert len({place.key(point), place.key(point[::-1]), place.key((*point[:7], 0.1))}) == 3


def test_coordinates_of_groups_that_differ(finer: LossEvaluator, counters: Counters) -> None:
    up, down, _ = counters.vectors.values()
    place = Coordinates(finer.coordinates.model, (GROUPS, ("mlp",)))
    point = (0.1, 0.2, 0.3, 0.4, 0.5)
    assert place.names == (*(f"{up} [{group}]" for group in GROUPS), f"{down} [mlp]")
    assert place.coefficients(point) == {up: dict(zip(GROUPS, point[:4], strict=True)), down: {"mlp": 0.5}}
    assert place.spread(("a", "b")) == ("a", "a", "a", "a", "b")
    assert place.key((0.3,) * 4 + (0.7,)) == Coordinates(place.model).key((0.3, 0.7))
    half = Coordinates(place.model, (GROUPS, ()))
    assert half.names == (*place.names[:4], down)
    assert half.coefficients(point)[down] == 0.5


def test_gradient_by_groups_is_the_finite_difference(finer: LossEvaluator) -> None:
    point, step = (0.3, 0.5, 0.7, 0.2, 0.6, 0.4, 0.8, 0.1), 1e-2
    slopes, found = finer.gradient(point), finer.statistics(point)
    for place in range(8):
        up, down = (
            finer.losses(tuple(v + sign * step * (i == place) for i, v in enumerate(point))) for sign in (1, -1)
        )
        for name in slopes:
            assert float(slopes[name][place]) == pytest.approx((up[name] - down[name]) / (2 * step), abs=1e-3)
    for name, slope in slopes.items():
        torch.testing.assert_close(found.parts[name].gradient, slope, rtol=0.1, atol=0.02)


def test_groups_that_are_better_are_kept(kept: SearchResult, counters: Counters) -> None:
    refined = kept.refinement
    assert refined is not None
    assert refined.is_kept
    assert list(kept.coefficients) == [counters.vectors["up"], counters.vectors["down"]]
    assert all(tuple(value) == GROUPS for value in kept.coefficients.values())
    assert kept.loss == refined.best.value < kept.best.value
    assert kept.held_out_loss == refined.acceptance.contenders["found"].value < refined.one.value
    assert refined.one.coefficients == tuple(value for value in kept.best.coefficients for _ in GROUPS)
    assert mean(fresh(counters, kept.coefficients, counters.data)) == pytest.approx(kept.loss, rel=1e-6)
    plain = dict(zip(kept.coefficients, kept.best.coefficients, strict=True))
    assert mean(fresh(counters, kept.coefficients, counters.test)) < mean(fresh(counters, plain, counters.test))
    assert any("tokens are few for 8 coefficients" in note for note in kept.notes)
    assert any("8 coefficients by group gain" in note and note.endswith("kept.") for note in kept.notes)


def test_the_cost(kept: SearchResult, search: Callable[..., SearchResult], counters: Counters) -> None:
    """The start is known from the search before; a step is one forward pass for each coefficient and one, and a check."""
    refined = kept.refinement
    assert refined is not None
    assert refined.method == "gauss_newton"
    assert refined.num_forward <= 2 * 8 + 4
    assert refined.num_forward_held_out == 1  # what was found; one coefficient a vector was accepted before
    assert kept.num_forward == search("up", "down", held_out=counters.test).num_forward + refined.num_forward


@pytest.mark.parametrize(("many", "method"), [(16, "gauss_newton"), (2, "gradient")])
def test_only_groups_that_a_vector_changes(
    counters: Counters, narrow: str, many: int, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has no effect would cost a forward pass a step, and be told as if it were known."""
    monkeypatch.setattr("dem_hub.search.strategies._MANY", many)
    up = counters.vectors["up"]
    found = search_coefficients(
        counters.base, [up, narrow], counters.data, held_out=counters.test, method=method, granularity="group"
    )
    refined = found.refinement
    assert refined is not None
    assert refined.method == method
    assert refined.coordinates == (*(f"{up} [{group}]" for group in GROUPS), f"{narrow} [attention]")
    assert [tuple(value) for value in refined.coefficients.values()] == [GROUPS, ("attention",)]
    assert (
        refined.num_forward <= 2 * (5 + 1) + 2
        if method == "gauss_newton"
        else refined.num_forward == 3 * len(refined.trials)
    )
    assert refined.best.value < found.best.value
    assert mean(fresh(counters, refined.coefficients, counters.data)) == pytest.approx(refined.best.value, rel=1e-6)
    whole = mean(fresh(counters, dict(zip(found.coefficients, found.best.coefficients, strict=True)), counters.data))
    assert refined.trials[0].value == pytest.approx(whole, rel=1e-6)


def test_vectors_of_one_group_each(counters: Counters, narrow: str) -> None:
    found = search_coefficients(counters.base, [narrow], counters.data, granularity="group")
    assert found.refinement is None
    assert any("by group were not looked for: no vector changes two groups" in note for note in found.notes)


def test_blocks(search: Callable[..., SearchResult], counters: Counters) -> None:
    """The toy has two layers, and so a run for each."""
    found = search("up", "down", held_out=counters.test, granularity="block")
    assert found.refinement is not None
    assert {tuple(value) for value in found.refinement.coefficients.values()} == {("layers 0-0", "layers 1-1", "rest")}
    assert found.refinement.best.value <= found.best.value
    assert found.refinement.is_kept is (found.config.search or {})["granularity"]["kept"]


def test_many_groups_are_found_by_gradients(
    search: Callable[..., SearchResult], counters: Counters, kept: SearchResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than sixteen coefficients; here more than two. Both ways lead to the same loss."""
    monkeypatch.setattr("dem_hub.search.strategies._MANY", 2)
    found = search("up", "down", held_out=counters.test, granularity="group", resume_from=kept)
    assert found.refinement is not None
    assert kept.refinement is not None
    assert found.refinement.method == "gradient"
    assert found.refinement.num_forward == 3 * len(found.refinement.trials)  # a forward and a backward pass each
    assert found.refinement.best.value == pytest.approx(kept.refinement.best.value, abs=5e-3)
    assert found.refinement.best.value < found.best.value


def test_what_does_not_hold_is_not_kept(search: Callable[..., SearchResult], counters: Counters) -> None:
    """Text of another kind is held out: what is fitted to the search's is no better there, and one coefficient a vector stays."""
    found = search(
        "up", "down", data={"text": counters.data["down"]}, held_out={"text": counters.data["up"]}, granularity="group"
    )
    refined = found.refinement
    assert refined is not None
    assert refined.best.value < found.best.value  # on what was searched
    assert refined.one.difference < refined.one.error
    assert not refined.is_kept
    assert found.loss == found.best.value
    assert tuple(found.coefficients.values()) == found.best.coefficients
    assert any(note.endswith("not kept, as that is not more than 2 standard errors.") for note in found.notes)


@pytest.mark.parametrize(
    ("gain", "error", "said"),
    [
        (0.021, 0.01, "kept."),
        (0.019, 0.01, "not kept, as that is not more than 2 standard errors."),
        (-0.1, 0.01, "not kept, as that is not more than 2 standard errors."),
        (0.1, 0.0, "not kept, as one window of held-out text has no standard error."),
    ],
)
def test_kept_for_more_than_two_errors(kept: SearchResult, gain: float, error: float, said: str) -> None:
    assert kept.refinement is not None
    accepted = kept.refinement.acceptance
    one = replace(accepted.contenders[ONE], difference=gain, error=error)
    refined = replace(kept.refinement, acceptance=replace(accepted, contenders={**accepted.contenders, ONE: one}))
    assert refined.note().endswith(f"forward passes: {said}")
    assert refined.is_kept is (said == "kept.")
    assert replace(kept, refinement=refined).loss == (refined.best.value if refined.is_kept else kept.best.value)


def test_recipe_and_result_are_read_again(kept: SearchResult, tmp_path: Path) -> None:
    kept.save_pretrained(tmp_path)
    again = SearchResult.from_pretrained(tmp_path)
    assert again.refinement == kept.refinement
    assert again.coefficients == kept.coefficients
    assert again.held_out_loss == kept.held_out_loss
    recipe = DEMConfig.from_pretrained(tmp_path)
    assert recipe == kept.config
    assert recipe.search is not None
    assert recipe.search["losses"] == dict(kept.chosen.losses)
    assert DEMModel.from_pretrained(tmp_path).dem.coefficients == kept.coefficients
    assert sum(again.mixing_ratio.values()) == pytest.approx(1)


def test_growing_from_groups(kept: SearchResult, search: Callable[..., SearchResult], tmp_path: Path) -> None:
    """Whole vectors are searched first, from where they stood; from a recipe alone, from the mean of each vector's groups."""
    kept.config.save_pretrained(tmp_path)
    grown = search("up", "down", resume_from=tmp_path, max_forward=4)
    assert grown.trials[0].coefficients == pytest.approx(
        [sum(value.values()) / 4 for value in kept.coefficients.values()]
    )
    assert search("up", "down", resume_from=kept, max_forward=4).trials[0].coefficients is not None


def test_nothing_to_accept_it_on(search: Callable[..., SearchResult]) -> None:
    found = search("up", data={"tiny": [[1, 2, 3]]}, granularity="group")
    assert found.refinement is None
    assert any("Coefficients by group were not looked for" in note for note in found.notes)


class StopError(Exception):
    pass


def test_goes_on_where_it_stopped(
    search: Callable[..., SearchResult], counters: Counters, kept: SearchResult, tmp_path: Path
) -> None:
    assert kept.refinement is not None
    first = len(kept.trials)
    seen: list[Trial] = []

    def stop(number: int, trial: Trial) -> None:
        seen.append(trial)
        assert number == len(seen) - 1
        if number == first + 1:
            raise StopError

    with pytest.raises(StopError):
        search("up", "down", held_out=counters.test, granularity="group", cache=tmp_path, callback=stop)
    before = (tmp_path / "measured.jsonl").read_text()
    again = search("up", "down", held_out=counters.test, granularity="group", cache=tmp_path)
    after = (tmp_path / "measured.jsonl").read_text()
    assert after.startswith(before)
    assert len({json.loads(line)[0] for line in after.splitlines()}) == len(after.splitlines())
    assert (again.refinement, again.num_forward) == (kept.refinement, kept.num_forward)


def test_no_budget_for_it(search: Callable[..., SearchResult]) -> None:
    found = search("up", "down", granularity="group", max_forward=5)
    assert found.refinement is None
    assert any("too few to look for 8 coefficients by group" in note for note in found.notes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "layer"}, "granularity is 'layer'; it must be one of model, block, group"),
        ({"granularity": "group", "held_out": 0}, "held_out=0, and such coefficients are kept only"),
        ({"granularity": "block", "max_sum": 1.0}, "max_sum=1.0, which is of one coefficient a vector"),
        ({"granularity": "block", "score": float, "eval_datasets": None}, "a score, which has no held-out part"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        search_coefficients("org/base", ["me/maths"], **{"eval_datasets": {"maths": [[1, 2]]}, **options})


def test_command(counters: Counters, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "up.jsonl"
    file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in counters.data["up"] + counters.test["up"]))
    command = [
        "search",
        str(counters.base),
        "--vector",
        counters.vectors["up"],
        "--data",
        f"up={file}",
        "--held-out",
        "0.5",
    ]
    assert main([*command, "--granularity", "group", "-o", str(tmp_path / "found")]) == 0
    out = capsys.readouterr().out
    found = SearchResult.from_pretrained(tmp_path / "found")
    assert found.refinement is not None
    assert found.refinement.note() in out
    assert ("up [mlp]" in out) is found.refinement.is_kept
    assert ONE not in out
    assert groups_of("model", [], None) == ()  # type: ignore[arg-type]  # which needs no base
