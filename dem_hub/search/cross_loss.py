"""The cross-loss table: the base, and the base with all of each vector, on every distribution; and what it says about the vectors.

Standard errors are over documents, since the tokens of one document are alike: over tokens they would be several times too small.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import torch
from torch import Tensor

from dem_hub.evaluation.windows import Window
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from dem_hub.vectors.comparison import Comparison

BASE = "base"
ALIKE = 0.9  # cosine, above which two vectors are near-duplicates
OUTLIER = 4.0  # times the median norm, or one in so many


@dataclass(frozen=True)
class Cell:
    """The mean loss of a token, in nats, and its standard error over documents."""

    loss: float
    error: float


@dataclass(frozen=True)
class CrossLoss:
    """`cells[model][distribution]`; the models are `base` and the vectors, each by name with coefficient 1."""

    cells: Mapping[str, Mapping[str, Cell]]

    @classmethod
    def of(cls, measured: LossEvaluator) -> "CrossLoss":
        """From what has been measured; models that have not been are left out."""
        count = len(measured.names)
        points = {BASE: (0.0,) * count} | {
            name: tuple(float(i == j) for j in range(count)) for i, name in enumerate(measured.names)
        }
        known = {model: measured.known_totals(point) for model, point in points.items() if measured.is_known(point)}
        return cls(
            {
                model: {
                    name: Cell(float(values.sum()) / sum(measured.tokens[name]), standard_error(values, measured, name))
                    for name, values in totals.items()
                }
                for model, totals in known.items()
            }
        )

    def flags(self) -> list[str]:
        """Vectors that are no better than the base on their own data: the distribution of their name, or the one they help most."""
        if BASE not in self.cells:
            return []
        base, found = self.cells[BASE], []
        for model, cells in self.cells.items():
            if model == BASE:
                continue
            gains = {name: base[name].loss - cell.loss for name, cell in cells.items()}
            own = own_distribution(model, gains)
            if gains[own] <= 0:
                found.append(
                    f"'{model}' is dead: on '{own}' its loss is {cells[own].loss:.4f} and the base's {base[own].loss:.4f}. Leave it out, or "
                    "train it longer."
                )
        return found


def own_distribution(vector: str, gains: Mapping[str, float]) -> str:
    """The distribution that a vector was made for: the longest name that is a word of the vector's, else the one it helps most."""
    stem = PurePath(vector).name
    named = [name for name in gains if re.search(rf"(?<![^\W_]){re.escape(name)}(?![^\W_])", stem, re.IGNORECASE)]
    return max(named, key=len) if named else max(gains, key=lambda name: gains[name])


def geometry_flags(comparison: Comparison) -> list[str]:
    """Vectors that are much longer or shorter than the others, and pairs that point the same way."""
    found = []
    norms = sorted(comparison.norms)
    median = norms[len(norms) // 2] if len(norms) % 2 else (norms[len(norms) // 2 - 1] + norms[len(norms) // 2]) / 2
    for name, norm in zip(comparison.names, comparison.norms, strict=True):
        if len(norms) > 2 and median > 0 and not 1 / OUTLIER <= norm / median <= OUTLIER:
            found.append(
                f"'{name}' has norm {norm:.4g} and the median is {median:.4g}: one of them was trained much longer or harder."
            )
    for i, first in enumerate(comparison.names):
        for j, second in enumerate(comparison.names[:i]):
            if comparison.cosines[i][j] > ALIKE:
                found.append(
                    f"'{second}' and '{first}' have cosine {comparison.cosines[i][j]:.2f}: near-duplicates, whose coefficients cannot be "
                    "told apart. One of them may do."
                )
    return found


def standard_error(totals: Tensor, measured: LossEvaluator, name: str) -> float:
    """Of a mean over tokens of what was summed over windows."""
    return clustered_error(totals, measured.tokens[name], measured.data[name])


def clustered_error(totals: Tensor, tokens: Sequence[int], windows: Sequence[Window]) -> float:
    """The standard error of sum(totals) / sum(tokens), with documents as the independent units, or the windows of a single one.

    It is nan for a single window.

    Source: the ratio estimator of cluster sampling (Cochran, Sampling Techniques, 1977, section 6.3).
    """
    documents = {document: place for place, document in enumerate(sorted({window.document for window in windows}))}
    if len(windows) < 2:
        return math.nan
    owners = torch.tensor([documents[window.document] for window in windows])
    units = len(documents)
    if units < 2:  # one long text; its windows are more alike than documents are, and all there is
        owners, units = torch.arange(len(windows)), len(windows)
    counts = torch.tensor(tokens, dtype=torch.float64)
    residual = torch.zeros(units, dtype=torch.float64).index_add(
        0, owners, totals - counts * (totals.sum() / counts.sum())
    )
    return math.sqrt(units / (units - 1) * float((residual**2).sum())) / float(counts.sum())
