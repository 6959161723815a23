"""Searches for the best score, which a function of the model gives."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMModel, SearchResult, search_coefficients
from dem_hub.errors import CoefficientError
from dem_hub.search import Grid, Optuna
from tests.support.counting_models import STEPS, Counters


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
    assert found.notes[0].startswith("method auto: quadratic, for a score")


def test_nothing_that_is_finite(counters: Counters) -> None:
    """No trial is called the best where all of them diverged."""
    vectors = [counters.vectors["up"]]
    with pytest.raises(CoefficientError, match="None of 12 trials is finite, not even with the coefficients"):
        search_coefficients(counters.base, vectors, score=lambda model: float("nan"), method="uniform")


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


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_score_is_shown_as_it_is(counters: Counters, tmp_path: Path, direction: str) -> None:
    """With its own name and sign, in the printed result and in the recipe; also after it was saved."""

    def doubled(model: Any) -> float:
        return 2 * next(iter(model.dem.coefficients.values()))

    vectors = [counters.vectors["up"]]
    found = search_coefficients(
        counters.base, vectors, score=doubled, direction=direction, method="uniform", max_forward=4
    )
    best = {"maximize": 3.0, "minimize": 0.0}[direction]
    found.save_pretrained(tmp_path / "found")
    for result in (found, SearchResult.from_pretrained(tmp_path / "found")):
        lines = str(result).splitlines()
        assert [line.split() for line in lines[5:10]] == [
            ["model", "doubled"],
            ["DEM", f"{best:g}"],
            ["base", "0"],
            ["up", "alone", "2"],
            ["1/N", "2"],
        ]
        better = {"maximize": "higher", "minimize": "lower"}[direction]
        assert f"; doubled {best:g}, {better} is better" in str(result)
    assert found.config.search is not None
    assert found.config.search["score"] == {"name": "doubled", "value": best, "direction": direction}
    assert "losses" not in found.config.search  # a card would make a perplexity of it


@pytest.mark.parametrize(("step", "note"), [(10.0, "Flat: flat 0 at all of 4 points."), (1.0, "Tied: 2 of 4 points")])
def test_flat_and_tied_scores_are_said_to_be(counters: Counters, step: float, note: str) -> None:
    def flat(model: Any) -> float:
        return next(iter(model.dem.coefficients.values())) // step

    found = search_coefficients(counters.base, [counters.vectors["up"]], score=flat, method="uniform", max_forward=4)
    assert any(one.startswith(note) for one in found.notes)
