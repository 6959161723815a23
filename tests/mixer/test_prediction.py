"""Losses to expect: those of the search's quadratics, with an uncertainty that holds at points that no trial was at."""

from dataclasses import replace

import pytest
import torch

from dem_hub import SearchResult
from dem_hub.mixer.mixer import Mixer
from dem_hub.search.prediction import Prediction

# The objective of quadratics by one formula and by another in float64.
SAME = 1e-12


@pytest.fixture
def prediction(result: SearchResult) -> Prediction:
    found = Prediction.of(result)
    assert found is not None
    return found


@pytest.mark.parametrize("around", ["the quadratics' own point", "what was found"])
def test_expected_losses_against_the_model_itself(prediction: Prediction, mixer: Mixer, around: str) -> None:
    generator = torch.Generator().manual_seed(0)
    center = prediction.result.best.coefficients if around == "what was found" else prediction.model.point
    point = torch.tensor(center, dtype=torch.float64)
    for distance in (0.1, 0.2, 0.2, 0.4, 0.8):
        step = torch.randn(3, generator=generator, dtype=torch.float64)
        there = (point + distance * step / step.norm()).tolist()
        measured = mixer.measure(there)
        for name, expected in prediction.losses(there).items():
            assert expected.error is not None
            assert abs(expected.loss - measured[name]) <= expected.error
        mean = prediction.value(there)
        assert mean.error is not None
        assert abs(mean.loss - sum(measured.values()) / 3) <= mean.error


def test_what_was_found_is_expected_as_it_was_measured(prediction: Prediction, result: SearchResult) -> None:
    for name, expected in prediction.losses(result.best.coefficients).items():
        assert expected.loss == pytest.approx(result.best.losses[name], abs=1e-9)
        assert expected.error == 0


def test_every_trial_is_within_its_uncertainty(prediction: Prediction, result: SearchResult) -> None:
    for trial in result.trials:
        for name, expected in prediction.losses(trial.coefficients).items():
            assert expected.error is not None
            # At the found point itself both were measured in float32.
            assert abs(expected.loss - trial.losses[name]) <= expected.error + 1e-6


@pytest.mark.parametrize("kind", ["mean", "worst", "improvement"])
def test_many_points_at_once_are_each_of_them(result: SearchResult, kind: str) -> None:
    objective = replace(result.objective, kind=kind, weights={"up": 2.0, "down": 0.5})
    prediction = Prediction.of(replace(result, objective=objective))
    assert prediction is not None
    points = torch.rand(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values = prediction.values(points).tolist()
    for value, point in zip(values, points.tolist(), strict=True):
        losses = {name: expected.loss for name, expected in prediction.losses(point).items()}
        assert value == pytest.approx(objective.value(losses, prediction.base_losses), abs=SAME)
        assert value == pytest.approx(prediction.value(point).loss, abs=SAME)


def test_one_trial_alone_says_nothing_of_errors(result: SearchResult) -> None:
    prediction = Prediction.of(replace(result, trials=(result.best,)))
    assert prediction is not None
    # Only its own value, to which the quadratics were corrected.
    assert prediction.value((0.0, 0.0, 0.0)).error is None
    assert {each.error for each in prediction.losses((0.0, 0.0, 0.0)).values()} == {None}


def test_there_is_none_without_quadratics(result: SearchResult) -> None:
    assert Prediction.of(None) is None
    assert Prediction.of(replace(result, model=None)) is None


def test_folders_that_were_moved_keep_their_order(result: SearchResult) -> None:
    assert result.model is not None
    elsewhere = tuple(f"/gone{name}" for name in result.model.names)
    prediction = Prediction.of(replace(result, model=replace(result.model, names=elsewhere)))
    assert prediction is not None
    assert prediction.names == tuple(result.config.coefficients)
    assert prediction.best([prediction.names[0]])[prediction.names[0]] == 0
