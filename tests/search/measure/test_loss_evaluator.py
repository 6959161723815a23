"""What is measured on the merged model: equal to fresh loads, to autograd and to finite differences, measured once, counted right."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dem_hub import DEMModel, DistributionVector
from dem_hub.errors import CoefficientError
from dem_hub.evaluation.likelihood import evaluate
from dem_hub.evaluation.windows import Window
from dem_hub.search.measure import shortlist
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.loss_evaluator import LOGIT_BYTES, LossEvaluator
from tests.support.counting_models import Counters

POINT = (0.4, 0.7, 0.2)


@pytest.fixture
def make(counters: Counters) -> Callable[..., LossEvaluator]:
    def make(cache: MeasurementCache | None = None, dtype: str = "float32", **options: Any) -> LossEvaluator:
        model = DEMModel.from_pretrained(
            counters.base, vectors=dict.fromkeys(counters.vectors.values(), 0.0), dtype=dtype
        )
        return LossEvaluator(model, windows(counters), cache or MeasurementCache(), **options)

    return make


def windows(counters: Counters) -> dict[str, list[Window]]:
    return {
        name: [Window(tuple(row), tuple(row), i) for i, row in enumerate(rows)] for name, rows in counters.data.items()
    }


def keep(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Keep fewer tokens at each place: some likely ones, and as many of the rest."""
    monkeypatch.setattr(shortlist, "LIKELY", tokens)
    monkeypatch.setattr(shortlist, "DRAWN", tokens)


def fresh(counters: Counters, point: tuple[float, ...], dtype: str = "float32") -> dict[str, float]:
    """The losses of a model that is loaded for these coefficients."""
    model = DEMModel.from_pretrained(
        counters.base, vectors=dict(zip(counters.vectors.values(), point, strict=True)), dtype=dtype
    )
    return {name: score.loss for name, score in evaluate(model, counters.data).items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_point_is_a_fresh_load(make: Callable[..., LossEvaluator], counters: Counters, dtype: str) -> None:
    measured = make(dtype=dtype)
    for point in (POINT, (1.0, 0.0, 0.0), (0.0, 0.0, 0.0), (-0.3, 1.5, 0.1), POINT):
        assert measured.losses(point) == fresh(counters, point, dtype)


def test_nothing_is_measured_twice(make: Callable[..., LossEvaluator]) -> None:
    measured = make()
    first = measured.losses(POINT)
    assert (measured.num_forward, measured.losses(POINT) == first, measured.is_known(POINT)) == (1, True, True)
    assert not measured.is_known((0.0, 0.0, 0.0))
    measured.keep_table()
    assert measured.num_forward == 1 + 4
    measured.keep_table()
    measured.losses((0.0, 1.0, 0.0))
    assert measured.num_forward == 1 + 4
    measured.statistics(POINT)
    assert measured.num_forward == 1 + 4 + 4
    measured.statistics(POINT)
    measured.gradient(POINT)
    assert measured.num_forward == 1 + 4 + 4 + 3
    assert make(measured.cache).losses(POINT) == first


def test_an_earlier_search_has_paid(make: Callable[..., LossEvaluator]) -> None:
    """What a killed search measured is its own cost when it goes on; what an earlier one did is not."""
    first = make()
    first.keep_table()
    first.statistics(POINT)
    resumed, grown = make(first.cache), make(MeasurementCache(known=first.cache))
    for measured in (resumed, grown):
        measured.keep_table()
        measured.statistics(POINT)
        measured.losses(POINT)
    assert (first.num_forward, resumed.num_forward, grown.num_forward) == (8, 8, 0)


@pytest.mark.parametrize("kept", [512, 8], ids=["all tokens", "some tokens"])
def test_logits_at_the_table_are_exact(
    make: Callable[..., LossEvaluator], kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its own models the algebra on kept logits gives their losses, to half precision of the differences."""
    keep(monkeypatch, kept)
    measured = make()
    measured.keep_table()
    for point in ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)):
        assert {k: part.loss for k, part in measured.from_logits(point).parts.items()} == pytest.approx(
            measured.losses(point), abs=2e-5
        )


def test_fewer_logits_than_there_are_tokens(make: Callable[..., LossEvaluator]) -> None:
    """A small memory keeps some windows, whole; losses are those of all tokens all the same."""
    whole, some = make(), make(logit_bytes=2 * 64 * 14 * 200)
    whole.keep_table()
    some.keep_table()
    assert some.losses((0.0, 1.0, 0.0)) == whole.losses((0.0, 1.0, 0.0))
    kept = [len(set(block.owners.tolist())) for block in some.cache._blocks.values()]
    assert all(1 <= count < 24 for count in kept)
    for name, part in some.from_logits(POINT).parts.items():
        assert part.loss == pytest.approx(whole.from_logits(POINT).parts[name].loss, abs=0.5)
        assert part.loss != whole.from_logits(POINT).parts[name].loss


@pytest.mark.parametrize("logit_bytes", [LOGIT_BYTES, 2 * 64 * 14 * 100], ids=["at once", "in parts"])
def test_statistics_are_the_gradient(make: Callable[..., LossEvaluator], logit_bytes: int) -> None:
    """From forward passes and from a backward pass the slope is the same, but for the finite step."""
    measured = make(logit_bytes=logit_bytes)
    found, slopes = measured.statistics(POINT), measured.gradient(POINT)
    for name, part in found.parts.items():
        assert part.loss == pytest.approx(measured.losses(POINT)[name], rel=1e-6)
        torch.testing.assert_close(part.gradient, slopes[name], rtol=0.1, atol=0.02)
        assert float(torch.linalg.eigvalsh(part.curvature).min()) > -1e-6


def test_statistics_of_likely_tokens(make: Callable[..., LossEvaluator], monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the vocabulary, half of it drawn, has nearly the slopes and the curvature of all of it."""
    whole = make().statistics(POINT)
    keep(monkeypatch, 8)
    for name, part in make().statistics(POINT).parts.items():
        assert part.loss == pytest.approx(whole.parts[name].loss, rel=1e-5)
        torch.testing.assert_close(part.gradient, whole.parts[name].gradient, rtol=0.05, atol=0.002)
        torch.testing.assert_close(part.curvature, whole.parts[name].curvature, rtol=0.1, atol=0.01)


def test_statistics_do_not_depend_on_memory(make: Callable[..., LossEvaluator]) -> None:
    whole, parts = make().statistics(POINT), make(logit_bytes=2 * 64 * 14 * 100, batch_size=3).statistics(POINT)
    for name, part in whole.parts.items():
        torch.testing.assert_close(part.gradient, parts.parts[name].gradient, rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(part.curvature, parts.parts[name].curvature, rtol=1e-3, atol=1e-5)


def test_gradient_is_the_finite_difference(make: Callable[..., LossEvaluator]) -> None:
    measured, step = make(), 1e-2
    slopes = measured.gradient(POINT)
    for place in range(3):
        up, down = (
            measured.losses(tuple(v + sign * step * (i == place) for i, v in enumerate(POINT))) for sign in (1, -1)
        )
        for name in slopes:
            assert float(slopes[name][place]) == pytest.approx((up[name] - down[name]) / (2 * step), abs=1e-3)
    parameters = list(measured.model.parameters())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in parameters)


def test_gradient_scores_too(make: Callable[..., LossEvaluator]) -> None:
    measured = make()
    measured.gradient(POINT)
    assert measured.losses(POINT) == pytest.approx(make().losses(POINT), rel=1e-6)
    assert measured.num_forward == 3


def test_a_vector_that_diverged_is_named(counters: Counters, tmp_path: Path) -> None:
    """Its weights are finite, and so large that its loss is not."""
    save = {name: value.clone() for name, value in load_file(counters.base / "model.safetensors").items()}
    for name in save:
        if "mlp" in name:
            save[name] = torch.full_like(save[name], 1e30)
    folder = tmp_path / "wild-model"
    folder.mkdir()
    save_file(save, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_bytes((counters.base / "config.json").read_bytes())
    DistributionVector.extract(counters.base, folder, codec="dense", dtype="float32").save_pretrained(tmp_path / "wild")
    vectors = {counters.vectors["up"]: 0.0, str(tmp_path / "wild"): 0.0}
    measured = LossEvaluator(
        DEMModel.from_pretrained(counters.base, vectors=vectors, dtype="float32"), windows(counters), MeasurementCache()
    )
    with pytest.raises(
        CoefficientError, match=r"The base with 1.0 of '.*wild' has a loss that is not finite on 'up', 'down', 'threes'"
    ):
        measured.keep_table()
    assert math.isfinite(measured.losses((0.0, 0.0))["up"])
