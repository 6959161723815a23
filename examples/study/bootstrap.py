"""Bootstrap intervals over documents: how far a difference of two models would scatter on other documents of the same kinds.

Documents, not tokens, are drawn, since the tokens of one are alike; both models are scored on the same ones, so that what is common to
them cancels (Efron and Tibshirani, 1993, "An introduction to the bootstrap", chapter 13: percentile intervals).
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

RESAMPLES = 10_000
_LOW, _HIGH = 0.025, 0.975


def paired_interval(
    first: Mapping[str, Sequence[float]],
    second: Mapping[str, Sequence[float]],
    tokens: Mapping[str, Sequence[int]],
    names: Sequence[str],
    *,
    seed: int = 0,
) -> tuple[float, float, float]:
    """The mean over distributions of the loss of the first model minus that of the second, and its 95 % interval.

    Args:
        first, second (`Mapping[str, Sequence[float]]`): by distribution, the mean loss of a token of each document, in nats.
        tokens (`Mapping[str, Sequence[int]]`): how many tokens of each document were scored.
        names (`Sequence[str]`): the distributions, which count alike.
        seed (`int`): of the draws.

    Returns:
        `tuple[float, float, float]`: the difference, and the lower and upper end; above 0, the second is better.
    """
    generator = torch.Generator().manual_seed(seed)
    means, draws = [], []
    for name in names:
        counts = torch.tensor(tokens[name], dtype=torch.float64)
        differences = torch.tensor(first[name], dtype=torch.float64) - torch.tensor(second[name], dtype=torch.float64)
        chosen = torch.randint(len(counts), (RESAMPLES, len(counts)), generator=generator)
        means.append(_mean(differences, counts))
        draws.append(_mean(differences[chosen], counts[chosen]))
    drawn = torch.stack(draws).mean(0)
    low, high = torch.quantile(drawn, torch.tensor([_LOW, _HIGH], dtype=torch.float64)).tolist()
    return float(torch.stack(means).mean()), low, high


def _mean(values: Tensor, weights: Tensor) -> Tensor:
    return (values * weights).sum(-1) / weights.sum(-1)
