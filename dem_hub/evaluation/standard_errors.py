"""Standard errors of losses, with documents as the independent units.

The tokens of one document are alike, so errors over tokens would be several times too small.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dem_hub.evaluation.windows import Window


def clustered_error(totals: Tensor, tokens: Sequence[int], windows: Sequence[Window]) -> float:
    """Return the standard error of sum(totals) / sum(tokens), with documents as the independent units.

    If all windows are of one document, the windows are the units. The error of a single window is nan.

    Args:
        totals (`Tensor`): One sum for each window, (W,) in float64.
        tokens (`Sequence[int]`): Scored tokens of each window.
        windows (`Sequence[Window]`): The windows, which know their documents.

    Source: The ratio estimator of cluster sampling (Cochran, Sampling Techniques, 1977, section 6.3).
    """
    if len(windows) < 2:
        return math.nan
    documents = sorted({window.document for window in windows})
    position = {document: number for number, document in enumerate(documents)}
    owners = torch.tensor([position[window.document] for window in windows])
    units = len(documents)
    if units < 2:
        # The windows of one long text are more alike than documents are, but they are all there is.
        owners = torch.arange(len(windows))
        units = len(windows)
    counts = torch.tensor(tokens, dtype=torch.float64)
    residuals = totals - counts * (totals.sum() / counts.sum())
    residual = torch.zeros(units, dtype=torch.float64).index_add(0, owners, residuals)
    return math.sqrt(units / (units - 1) * float((residual**2).sum())) / float(counts.sum())
