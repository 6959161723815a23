"""Losses of a model that is loaded for them alone: what a search should have measured."""

from typing import Any

from dem_hub import DEMModel
from dem_hub.evaluation.likelihood import evaluate
from tests.support.counting_models import Counters


def fresh(counters: Counters, coefficients: Any, data: Any) -> dict[str, float]:
    """Return the mean loss of a token of each distribution."""
    model = DEMModel.from_pretrained(counters.base, vectors=coefficients, dtype="float32")
    return {name: score.loss for name, score in evaluate(model, data).items()}


def mean(losses: dict[str, float]) -> float:
    return sum(losses.values()) / len(losses)
