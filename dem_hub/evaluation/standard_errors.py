"""Standard errors of losses, with documents as the independent units.

The tokens of one document are alike, so errors over tokens would be several times too small.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from dem_hub.evaluation.windows import Window

# Degrees of freedom beyond which Student's t is taken for the normal distribution. There they differ by 0.0005.
_NORMAL = 10_000

# Steps of the integral of its density. With them quantiles are right to 1 % down to a level of 0.0005, and not too
# small.
_STEPS = 1 << 16


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
    owners = torch.tensor([position[window.document] for window in windows], device="cpu")
    units = count_units(windows)
    if units > len(documents):
        owners = torch.arange(len(windows), device="cpu")
    counts = torch.tensor(tokens, dtype=torch.float64, device="cpu")
    residuals = totals - counts * (totals.sum() / counts.sum())
    residual = torch.zeros(units, dtype=torch.float64, device="cpu").index_add(0, owners, residuals)
    return math.sqrt(units / (units - 1) * float((residual**2).sum())) / float(counts.sum())


def count_units(windows: Sequence[Window]) -> int:
    """Return the number of independent units: the documents, or the windows if all are of one document."""
    documents = {window.document for window in windows}
    if len(documents) > 1:
        return len(documents)
    # The windows of one long text are more alike than documents are, but they are all there is.
    return len(windows)


def student_quantile(level: float, degrees: int) -> float:
    """Return the number that Student's t exceeds with a probability of `level`.

    Args:
        level (`float`): The probability, less than a half.
        degrees (`int`): Degrees of freedom, one less than the units. Without any, nothing is known: infinity.

    Example:

    ```python
    >>> from dem_hub.evaluation.standard_errors import student_quantile
    >>> [round(student_quantile(0.05, degrees), 2) for degrees in (0, 1, 10, 10**6)]
    [inf, 6.31, 1.81, 1.64]

    ```

    Source: with t = sqrt(degrees) tan(angle), the density of the angle is proportional to cos(angle)^(degrees - 1).
    """
    if degrees < 1:
        return math.inf
    if degrees > _NORMAL:
        return NormalDist().inv_cdf(1 - level)
    angles = torch.linspace(0, math.pi / 2, _STEPS, dtype=torch.float64, device="cpu")
    density = angles.cos() ** (degrees - 1)
    # The trapezoidal rule. Half of the probability is on either side of 0.
    areas = torch.cumulative_trapezoid(density, angles)
    place = int(torch.searchsorted(areas, areas[-1] * (1 - 2 * level)))
    return math.sqrt(degrees) * math.tan(float(angles[place + 1]))
