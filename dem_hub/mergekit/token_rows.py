"""Rows of tokens that several models bring: when mergekit's mean of them is the one of this library."""

from collections.abc import Collection, Mapping, Sequence

from dem_hub.checkpoints.tensor_groups import EMBEDDING, REST
from dem_hub.errors import ConfigError
from dem_hub.files.shown import shown
from dem_hub.merging.coefficients import Coefficient

# How far from 1 coefficients may sum to: rounding of the decimals.
_SUM_TOLERANCE = 1e-9


def check_rows(tokens: Sequence[Collection[str]], coefficients: Sequence[Coefficient]) -> None:
    """Check that mergekit has the same mean for each new token.

    Args:
        tokens (`Sequence`): The new tokens of each vector.
        coefficients (`Sequence`): The coefficient of each vector.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it has another one.
    """
    having: dict[str, list[float]] = {}
    for of_vector, coefficient in zip(tokens, coefficients, strict=True):
        for text in of_vector:
            having.setdefault(text, []).append(_of_rows(coefficient))
    for text, numbers in having.items():
        _check_mean(text, numbers)


def _check_mean(text: str, having: Sequence[float]) -> None:
    """Refuse a token of several models with coefficients at which mergekit's row is not their weighted mean.

    mergekit takes the mean m of the rows as the base's, and adds coefficient * (row - m) for each. That is the weighted mean
    if the coefficients sum to 1, or are all the same.
    """
    is_mean = len(set(having)) == 1 or (min(having) >= 0 and abs(sum(having) - 1) < _SUM_TOLERANCE)
    if not is_mean:
        listed = ", ".join(f"{number:g}" for number in having)
        raise ConfigError(
            f"{len(having)} models bring the token {shown(text)}, at the coefficients {listed}. dem_hub takes the mean "
            "of their rows, weighted by these; mergekit something else, unless they are the same or sum to 1. Change "
            "them, or name vectors in the place of a config: dem-hub merge BASE --vector ..."
        )


def _of_rows(number: Coefficient) -> float:
    """Return the coefficient that a vector has for the embeddings."""
    if isinstance(number, Mapping):
        return number.get(EMBEDDING, number.get(REST, 0.0))
    return number
