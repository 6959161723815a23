"""How sure a mean over documents is, or the difference of two models' means: a paired bootstrap over documents.

Documents are drawn anew, not tokens: the tokens of a document share their subject, and an interval over tokens would be far too narrow.
Two models are compared on the same draws, since a document that is hard for one is hard for the other. Where documents belong to several
distributions, each is drawn from by itself and counts the same, as it does in the mean log-perplexity.
"""

from collections.abc import Hashable, Sequence

import numpy as np

RESAMPLES = 10_000
COVERAGE = 0.95

_AT_ONCE = 2_000_000  # draws in memory


def mean_interval(
    values_a: Sequence[float],
    values_b: Sequence[float] | None = None,
    *,
    weights: Sequence[float] | None = None,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> tuple[float, float, float]:
    """A weighted mean over documents, or the difference of two, and its 95 % interval by 10,000 resamples.

    Args:
        values_a (`Sequence[float]`): one number a document, such as its loss a token.
        values_b (`Sequence[float]`, *optional*): the same documents' numbers under another model; the mean is that of a minus b.
        weights (`Sequence[float]`, *optional*): of the documents, such as their tokens; equal by default.
        groups (`Sequence[Hashable]`, *optional*): the distribution of each document. Each is resampled by itself, to its own size, and the
            result is the plain mean of the distributions' means.
        seed (`int`, *optional*, defaults to 0): of the draws; the same seed, the same interval.

    Returns:
        `tuple[float, float, float]`: the mean, and the interval's lower and upper end (percentiles).

    Raises:
        `ValueError`: there are no documents, they are not as many everywhere, or a weight is not above 0.

    Example:

    ```python
    >>> from bootstrap import mean_interval
    >>> mean, low, high = mean_interval([3.0, 2.0, 4.0], [2.5, 1.5, 3.5])
    >>> (mean, low, high)
    (0.5, 0.5, 0.5)

    ```

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.
    """
    values = np.asarray(values_a, dtype=np.float64)
    counts = {"values_a": len(values)}
    counts |= {
        name: len(given)
        for name, given in (("values_b", values_b), ("weights", weights), ("groups", groups))
        if given is not None
    }
    if not len(values) or len(set(counts.values())) > 1:
        raise ValueError(f"A mean over documents needs some, and a number for each; there are {counts}.")
    shares = np.ones(len(values)) if weights is None else np.asarray(weights, dtype=np.float64)
    if not (np.isfinite(shares).all() and (shares > 0).all()):
        raise ValueError(
            f"Weights must be finite and above 0; the least is {shares.min()}. Leave documents of no weight out."
        )
    if values_b is not None:
        values = values - np.asarray(values_b, dtype=np.float64)
    rng = np.random.default_rng(seed)
    means, drawn = [], []
    for place in _places(groups, len(values)):
        means.append(np.average(values[place], weights=shares[place]))
        drawn.append(_resampled_means(values[place], shares[place], rng))
    tail = 100 * (1 - COVERAGE) / 2
    low, high = np.percentile(np.mean(drawn, axis=0), [tail, 100 - tail])
    return float(np.mean(means)), float(low), float(high)


def _places(groups: Sequence[Hashable] | None, count: int) -> list[list[int]]:
    """Which documents belong together, in the order in which the groups first appear."""
    places: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups if groups is not None else [None] * count):
        places.setdefault(group, []).append(place)
    return list(places.values())


def _resampled_means(values: np.ndarray, weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The weighted mean of each resample, (RESAMPLES,). The weights are drawn with their documents."""
    means = np.empty(RESAMPLES)
    step = max(1, _AT_ONCE // len(values))
    for start in range(0, RESAMPLES, step):
        draws = rng.integers(len(values), size=(min(step, RESAMPLES - start), len(values)))
        means[start : start + len(draws)] = (values * weights)[draws].sum(1) / weights[draws].sum(1)
    return means
