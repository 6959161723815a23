"""Compare vectors: their norms, cosines and overlaps, and the norm of each tensor's delta.

The inner product of two low-rank deltas is computed from their factors, so nothing is multiplied out. Unbiased
codecs add noise to a decoded delta, and that noise would count as length. The length of a vector is therefore taken
from what extraction measured, while inner products of decoded vectors are right on average.
"""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.codecs.component import StoredDelta
from dem_hub.defaults import THEME, Theme
from dem_hub.files.distinct_names import distinct_names
from dem_hub.hub.report import Report, Table
from dem_hub.plotting import draw_cosines
from dem_hub.vectors.compatibility import check_weights
from dem_hub.vectors.norms import inner_products
from dem_hub.vectors.vector import DistributionVector

if TYPE_CHECKING:
    from dem_hub.plotting.picture import Picture


@dataclass(frozen=True)
class Comparison:
    """The relations between vectors of one base.

    `norms[i]` is the length of vector i; `cosines[i][j]`, -1 to 1, is 0 if one of the two is zero;
    `overlaps[i][j]`, 0 to 1, is the number of elements in tensors that both vectors change, divided by the number in
    tensors that either of them changes.
    """

    names: tuple[str, ...]
    norms: tuple[float, ...]
    cosines: tuple[tuple[float, ...], ...]
    overlaps: tuple[tuple[float, ...], ...]

    def _repr_html_(self) -> str:
        return self.report().html()

    def plot(self, path: str | os.PathLike[str] | None = None, *, theme: Theme = THEME) -> "Picture":
        """Draw the cosines as a matrix, and the norms. A notebook shows the picture.

        Args:
            path (`str` or `os.PathLike`, *optional*): The file to write: `.png`, `.svg` or `.pdf`.
            theme (`str`, defaults to `"light"`): `light` or `dark`.

        Returns:
            `matplotlib.figure.Figure`: The picture.

        Raises:
            `MissingDependencyError`: matplotlib is not installed (extra `plot`).
        """
        names = ["/".join(parts) for parts in distinct_names([Path(name) for name in self.names])]
        return draw_cosines(names, self.norms, self.cosines, theme).saved(path)

    def report(self) -> Report:
        """Return norms and cosines as a table. Columns have numbers, as names would be too wide."""
        numbers = [f"[{number}]" for number in range(1, len(self.names) + 1)]
        rows = []
        for number, name, norm, cosines in zip(numbers, self.names, self.norms, self.cosines, strict=True):
            rows.append((f"{number} {name}", f"{norm:.4g}", *(f"{cosine:.4f}" for cosine in cosines)))
        return Report("cosines", (Table(("", "norm", *numbers), rows),))


def compare(vectors: Sequence[DistributionVector], base: Base, names: Sequence[str] | None = None) -> Comparison:
    """Compare vectors of one base with each other.

    Args:
        vectors (`Sequence[DistributionVector]`): The vectors, any number of them.
        base ([`Base`]): The base they were taken from.
        names (`Sequence[str]`, *optional*): Names for the result; by default the vectors' own.

    Returns:
        [`Comparison`]: Norms, cosines and overlaps, in the order of `vectors`.

    Raises:
        `CheckpointError`: If the weights of a vector are still on the Hub ([`DistributionVector.describe`]).
        `BaseMismatchError`, `AdapterError`: As [`DistributionVector.deltas`] raises them.
    """
    from huggingface_hub.utils import tqdm

    for vector in vectors:
        check_weights(vector)
    deltas = [vector.deltas(base) for vector in vectors]
    count = len(vectors)
    products = torch.zeros(count, count, dtype=torch.float64, device="cpu")
    for name in tqdm(sorted(set().union(*deltas)), desc="Comparing", unit="tensor", delay=1, name="dem_hub.comparing"):
        products += inner_products([stored.get(name, StoredDelta()) for stored in deltas], base, name)
    norms = [_norm(vector, float(products[i, i])) for i, vector in enumerate(vectors)]
    cosines = []
    overlaps = []
    for i in range(count):
        cosines.append(tuple(_cosine(products, norms, i, j) for j in range(count)))
        overlaps.append(tuple(_overlap(deltas[i], other, base) for other in deltas))
    if names is None:
        names = [vector.name for vector in vectors]
    return Comparison(tuple(names), tuple(norms), tuple(cosines), tuple(overlaps))


def _norm(vector: DistributionVector, decoded_square: float) -> float:
    """Return the length of a vector without codec noise, from the norms and projections measured at extraction.

    The decoded vector is longer, because unbiased codecs add noise. An adapter has no codec noise: `decoded_square`
    is exact.
    """
    square = decoded_square
    if vector.config is not None:
        square = sum(record.norm**2 * record.projection for record in vector.config.tensors.values())
    return math.sqrt(max(square, 0.0))


def _cosine(products: Tensor, norms: Sequence[float], i: int, j: int) -> float:
    """Return the inner product of two decoded vectors, divided by their lengths without noise.

    Noise can move the quotient past 1, so it is clamped. The cosine of a vector with itself is 1, and not its noisy
    square.
    """
    if not norms[i] or not norms[j]:
        return 0.0
    if i == j:
        return 1.0
    return min(1.0, max(-1.0, float(products[i, j]) / (norms[i] * norms[j])))


def _overlap(first: Mapping[str, StoredDelta], second: Mapping[str, StoredDelta], base: Base) -> float:
    """Return the elements in tensors that both change, as a fraction of those in tensors that either changes."""
    in_either = _elements(set(first) | set(second), base)
    if not in_either:
        return 0.0
    return _elements(set(first) & set(second), base) / in_either


def _elements(names: set[str], base: Base) -> int:
    return sum(math.prod(base.checkpoint[name].shape) for name in names)
