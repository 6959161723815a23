"""What losses and divergences say about a merge: the share of a fine-tune's gain that it has kept, and a verdict.

Errors are over documents, and subtractions are made document by document: models differ far less on the same text than
texts do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from dem_hub.evaluation.divergence import Compared
from dem_hub.evaluation.standard_errors import clustered_error
from dem_hub.evaluation.windows import Window

# The shares of a fine-tune's gain from which on it is kept, and below which it is lost. Chosen by hand: a merge of
# several fine-tunes keeps a part of each.
KEPT = 0.9
LOST = 0.1

# Standard errors to each side that a verdict takes into account: 95 % of a normal distribution.
ERRORS = 2.0

RULE = (
    f"Share kept: the merge's gain over the base by the fine-tune's. From {KEPT:.0%} on it is kept, below {LOST:.0%} "
    f"lost, between them partly kept; {ERRORS:.0f} standard errors (over documents) to both sides must agree."
)


@dataclass(frozen=True)
class Mean:
    """A mean over scored tokens, or a ratio of two, with its standard error over documents.

    The error is nan if there is a single window.
    """

    value: float
    error: float


@dataclass(frozen=True)
class DataCheck:
    """The check on one dataset.

    `base`, `finetuned` and `merged` are losses, in nats per token. `divergence` is KL(fine-tune || merge), and
    `base_divergence` KL(fine-tune || base), in nats per token. `kept` is the share of the fine-tune's gain over the
    base that the merge has.
    """

    tokens: int
    documents: int
    base: Mean
    finetuned: Mean
    merged: Mean
    base_divergence: Mean
    divergence: Mean
    kept: Mean
    verdict: str

    @classmethod
    def of(
        cls, windows: Sequence[Window], counts: Sequence[int], finetuned: Tensor, base: Compared, merged: Compared
    ) -> "DataCheck":
        """Return the check on windows, of which each has a count of scored tokens, and sums of what three models say.

        `finetuned` are the losses of the fine-tune, (windows,) in float64.
        """

        def mean(totals: Tensor) -> Mean:
            return Mean(float(totals.sum()) / sum(counts), clustered_error(totals, counts, windows))

        gains = base.losses - finetuned
        merged_gains = base.losses - merged.losses
        gain = mean(gains)
        kept = Mean(math.nan, math.nan)
        if gain.value:
            share = mean(merged_gains).value / gain.value
            # The error of a ratio of two means, by what it leaves of each document (Cochran, section 6.3).
            kept = Mean(share, mean(merged_gains - share * gains).error / abs(gain.value))
        return cls(
            tokens=sum(counts),
            documents=len({window.document for window in windows}),
            base=mean(base.losses),
            finetuned=mean(finetuned),
            merged=mean(merged.losses),
            base_divergence=mean(base.divergences),
            divergence=mean(merged.divergences),
            kept=kept,
            verdict=judge(gain, kept),
        )


def judge(gain: Mean, kept: Mean) -> str:
    """Return the verdict in a word or two, by [`RULE`].

    Args:
        gain ([`Mean`]): How much lower the fine-tune's loss is than the base's, in nats per token.
        kept ([`Mean`]): The share of it that the merge has.
    """
    # Written with `not`: an error that is not known is nan.
    if not gain.value > ERRORS * gain.error:
        return "no gain to keep"
    grades = [_grade(kept.value + side * ERRORS * kept.error) for side in (-1, 1)]
    if grades[0] != grades[1]:
        return f"{grades[0]} or {grades[1]}"
    return grades[0]


def _grade(share: float) -> str:
    if share >= KEPT:
        return "kept"
    return "lost" if share < LOST else "partly kept"
