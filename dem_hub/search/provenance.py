"""The provenance of coefficients: how a search found them, as a recipe keeps it.

It is for people and cards. Nothing reads it back, so that it may grow without a new format.
"""

import math
from collections.abc import Mapping
from typing import Any

from dem_hub.merging.short_names import short_names
from dem_hub.search.points import alone
from dem_hub.search.result import SearchResult


def provenance(result: SearchResult, seed: int) -> dict[str, Any]:
    """Return how the coefficients were found, for the recipe."""
    data: dict[str, Any] = {
        "method": result.method,
        "seed": seed,
        "n_trials": len(result.trials),
        "num_forward": round(result.num_forward, 3),
        "objective": result.objective.kind,
        "tokens": dict(result.tokens),
    }
    if result.score is None:
        data["losses"] = dict(result.chosen.losses)
    else:
        # As no loss: a card would show its exponential as a perplexity.
        data["score"] = {**vars(result.score), "value": result.score.own(result.loss)}
    if result.refinement is not None:
        data["granularity"] = {
            "of": result.refinement.granularity,
            "kept": result.refinement.is_kept,
            "gain": result.refinement.one.difference,
        }
    if result.regmean is not None:
        data["regmean"] = {
            "kept": result.regmean.is_kept,
            "gain": -result.regmean.contender.difference,
            "error": result.regmean.contender.error,
        }
    if result.base_losses is not None:
        data["base_losses"] = result.base_losses
    if result.acceptance is not None:
        shown = _short_labels(result)
        data["held_out"] = {
            "chosen": shown.get(result.acceptance.chosen, result.acceptance.chosen),
            "loss": result.held_out_loss,
            "baselines": {shown.get(label, label): value for label, value in result.baselines.items()},
        }
    return without_non_finite(data)


def _short_labels(result: SearchResult) -> dict[str, str]:
    """Return the label that a recipe has of each vector alone: without its folder, which others need not know."""
    names = list(result.plain.coefficients)
    return {alone(name): alone(short) for name, short in zip(names, short_names(names), strict=True)}


def without_non_finite(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return JSON data without the numbers that are not finite, at any depth of mappings.

    A model that diverges has an infinite loss. JSON has no infinity, and a recipe with one could not be read again.
    """
    finite: dict[str, Any] = {}
    for name, value in data.items():
        if isinstance(value, Mapping):
            finite[name] = without_non_finite(value)
        elif not isinstance(value, float) or math.isfinite(value):
            finite[name] = value
    return finite
