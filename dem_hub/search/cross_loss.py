"""The cross-loss table: losses of the base, and of the base with all of each vector, on every distribution.

The table says which vectors do not help. Its standard errors are over documents, because the tokens of one document
are alike: errors over tokens would be several times too small.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from statistics import median

from torch import Tensor

from dem_hub.evaluation.standard_errors import clustered_error
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from dem_hub.search.points import all_at, each_alone
from dem_hub.vectors.comparison import Comparison

BASE = "base"

# Cosine above which two vectors are called near-duplicates. Chosen by hand, not measured.
ALIKE = 0.9

# A norm is called an outlier if it is more than this many times the median norm, or less than one in so many.
# Chosen by hand, not measured.
OUTLIER = 4.0


@dataclass(frozen=True)
class Cell:
    """The mean loss of a token in nats, and its standard error over documents."""

    loss: float
    error: float


@dataclass(frozen=True)
class CrossLoss:
    """Losses by model and distribution.

    The keys of `cells` are the models: `base`, and the name of each vector for the base with coefficient 1 of it.
    The keys of a row are the distributions.
    """

    cells: Mapping[str, Mapping[str, Cell]]

    @classmethod
    def of(cls, loss_evaluator: LossEvaluator) -> "CrossLoss":
        """Return the table of what has been measured; it has no row for a model that has not been."""
        count = len(loss_evaluator.names)
        points = {BASE: all_at(0.0, count), **dict(zip(loss_evaluator.names, each_alone(count), strict=True))}
        cells = {}
        for model, point in points.items():
            if loss_evaluator.is_known(point):
                cells[model] = _row(loss_evaluator, point)
        return cls(cells)

    def flags(self) -> list[str]:
        """Return a warning for each vector that is no better than the base on its [`own_distribution`]."""
        warnings: list[str] = []
        if BASE not in self.cells:
            return warnings
        base = self.cells[BASE]
        for model, cells in self.cells.items():
            if model == BASE:
                continue
            gains = {name: base[name].loss - cell.loss for name, cell in cells.items()}
            name = own_distribution(model, gains)
            if gains[name] <= 0:
                warnings.append(
                    f"'{model}' is no better than the base on its own distribution '{name}': its loss is "
                    f"{cells[name].loss:.4f}, the base's {base[name].loss:.4f}. Leave it out, or train it longer."
                )
        return warnings


def own_distribution(vector: str, gains: Mapping[str, float]) -> str:
    """Return the distribution that a vector was made for, as far as one can tell.

    Args:
        vector (`str`): Hub id or folder of the vector.
        gains (`Mapping[str, float]`): Gain over the base on each distribution, in nats.

    Returns:
        `str`: The longest name of a distribution that is a word of the vector's name, or else the distribution that
            gains most.
    """
    words = PurePath(vector).name
    named = [name for name in gains if _has_word(words, name)]
    if named:
        return max(named, key=len)
    return max(gains, key=lambda name: gains[name])


def _has_word(text: str, word: str) -> bool:
    """Return whether a word is in a text, in any case, with no letter or digit before or after it."""
    # \b would not do, as it takes an underscore for a letter: `me/maths_vector` has the word `maths`.
    return re.search(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", text, re.IGNORECASE) is not None


def geometry_flags(comparison: Comparison) -> list[str]:
    """Return a warning for each vector of unusual length, and for each pair that points the same way."""
    warnings = []
    middle = median(comparison.norms)
    # Of two vectors one cannot say which is the outlier.
    has_outliers = len(comparison.norms) > 2 and middle > 0
    for name, norm in zip(comparison.names, comparison.norms, strict=True):
        if has_outliers and not 1 / OUTLIER <= norm / middle <= OUTLIER:
            warnings.append(
                f"'{name}' has norm {norm:.4g} and the median is {middle:.4g}: one of them was trained much longer or "
                "harder."
            )
    for row, second in enumerate(comparison.names):
        for column, first in enumerate(comparison.names[:row]):
            cosine = comparison.cosines[row][column]
            if cosine > ALIKE:
                warnings.append(
                    f"'{first}' and '{second}' have cosine {cosine:.2f}: near-duplicates, whose coefficients cannot "
                    "be told apart. One of them may be enough."
                )
    return warnings


def standard_error(totals: Tensor, loss_evaluator: LossEvaluator, name: str) -> float:
    """Return the standard error of the mean loss of a token of one distribution.

    Args:
        totals (`Tensor`): Summed loss of each window of the distribution, (W,) in float64.
        loss_evaluator ([`LossEvaluator`]): Source of the windows.
        name (`str`): The distribution.
    """
    return clustered_error(totals, loss_evaluator.tokens[name], loss_evaluator.data[name])


def _row(loss_evaluator: LossEvaluator, point: Sequence[float]) -> dict[str, Cell]:
    """Return the losses of one model that has been measured."""
    cells = {}
    for name, totals in loss_evaluator.known_totals(point).items():
        loss = float(totals.sum()) / sum(loss_evaluator.tokens[name])
        cells[name] = Cell(loss, standard_error(totals, loss_evaluator, name))
    return cells
