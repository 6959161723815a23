"""The shortlist of a place: the tokens of a large vocabulary whose logits are kept there.

It has the token that came, the likeliest others, and tokens that are drawn from the rest. Each of those that are drawn
stands for an equal part of the rest's probability. So sums over a shortlist are close to those over the vocabulary
(benchmarks/README.md, `shortlist.py`), and the probability of the rest as a whole is exact: at the center, and after
each move by itself.

Source: systematic sampling with probabilities in proportion to size (Madow, 1949). It needs no random numbers.
"""

import math

import torch
from torch import Tensor

# Tokens beside the one that came.
LIKELY = 512
DRAWN = 512


def shortlist_size(vocabulary: int) -> int:
    """Return how many tokens of a vocabulary are kept at each place; all of a small one."""
    return min(vocabulary, 1 + LIKELY + DRAWN)


def drawn_from(vocabulary: int) -> int:
    """Return at which column of a shortlist those that are drawn begin; where nothing is drawn, behind the last."""
    if shortlist_size(vocabulary) == vocabulary:
        return vocabulary
    return 1 + LIKELY


def shortlist(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the tokens to keep at each place, (T, C): the one that came, the likeliest others, and those drawn.

    Args:
        logits (`Tensor`): (T, V), float32.
        targets (`Tensor`): (T,), the tokens that came.
    """
    vocabulary = logits.shape[1]
    came = targets.unsqueeze(1)
    others = logits.scatter(1, came, -math.inf)
    likely = others.topk(drawn_from(vocabulary) - 1, sorted=False).indices
    tokens = torch.cat([came, likely], 1)
    if tokens.shape[1] == vocabulary:
        return tokens
    others.scatter_(1, likely, -math.inf)
    return torch.cat([tokens, _draw(others)], 1)


def _draw(logits: Tensor) -> Tensor:
    """Return tokens at each place, (T, DRAWN), each as often as its probability says, to less than one."""
    # Of nothing but impossible tokens the probabilities are not numbers, and any will do.
    cumulative = logits.softmax(1).nan_to_num_(0.0).cumsum(1)
    steps = (torch.arange(DRAWN, device=logits.device, dtype=logits.dtype) + 0.5) / DRAWN
    return torch.searchsorted(cumulative, steps * cumulative[:, -1:])


def logits_of(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logits of a shortlist, (T, C), and that of the whole rest, (T,): the logarithm of its summed exp.

    Args:
        logits (`Tensor`): (T, V), float32.
        tokens (`Tensor`): (T, C), what [`shortlist`] returns for the center.
    """
    tokens = tokens.long()
    first = drawn_from(logits.shape[1])
    rest = logits.scatter(1, tokens[:, :first], -math.inf).logsumexp(1)
    # Some models answer minus infinity for tokens that are never to come, whose differences would not be numbers.
    lowest = torch.finfo(logits.dtype).min
    return logits.gather(1, tokens).clamp_(min=lowest), rest.clamp_(min=lowest)


def weigh(logits: Tensor, rest: Tensor, first: int) -> None:
    """Let those that are drawn stand for the rest, in place: their logits, from column `first`, (T, C), get its."""
    drawn = logits.shape[1] - first
    if drawn:
        logits[:, first:] = rest.unsqueeze(1) - math.log(drawn)


def settle(move: Tensor, rest_move: Tensor, first: int) -> None:
    """Shift what those that are drawn add, in place, so that the probability of the rest moves as it does by itself.

    Args:
        move (`Tensor`): (T, C), differences of the logits of a shortlist from the center.
        rest_move (`Tensor`): (T,), the same of the logit of the whole rest.
        first (`int`): The column where those that are drawn begin.
    """
    drawn = move[:, first:]
    if drawn.shape[1]:
        mean = drawn.logsumexp(1) - math.log(drawn.shape[1])
        drawn += (rest_move - mean).unsqueeze(1)
