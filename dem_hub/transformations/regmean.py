"""RegMean: each vector gets, in place of a coefficient, a matrix on the input side of every linear layer.

A linear layer y = W x gets inputs X_i, (tokens, D), from distribution i. Ask of one W that it answers each distribution
as that distribution's own fine-tune does:

    min_W sum_i |X_i W^T - X_i W_i^T|^2 / tokens_i   =>   W = W_0 + sum_i delta_i G_i (sum_j G_j)^-1,
    G_i = X_i^T X_i / tokens_i

So a vector keeps all of its delta in directions that only its own distribution uses, and a share where several do. The
matrices of all vectors sum to the identity, so there are no coefficients to be found: all are 1.

The distributions do not count alike: G_i is multiplied by what vector i gains on its own distribution over the base, in
nats a token, divided by the mean of all. Without its vector, a distribution's outputs are wrong by that vector's whole
delta, and this costs it the gain. So the gain says how much an error costs there. Without the weights, the vector that
matters most is divided up like the others; benchmarks/README.md has both.

What has no input statistics (embeddings, norms, biases) is averaged with the same weights. Rows of embeddings weighted
by how often each distribution has their token, which is the formula for one-hot inputs, were no better
(benchmarks/README.md).

Source: Jin, Ren, Preotiuc-Pietro and Cheng, *Dataless Knowledge Fusion by Merging Weights of Language Models*, ICLR
2023, equation 2; on task vectors, *LOT Merging*, arXiv 2505.23859.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, ClassVar

import torch

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.codecs.delta import Delta
from dem_hub.codecs.registry import encoder_from_name
from dem_hub.defaults import BATCH_SIZE, MAX_LENGTH, SEARCH_DTYPE
from dem_hub.errors import ConfigError
from dem_hub.hub.references import VectorSource
from dem_hub.input_statistics.moments import Moments
from dem_hub.input_statistics.statistics_file import InputStatistics
from dem_hub.numerics.slices import full_index, row_blocks
from dem_hub.transformations.own_data import OwnData
from dem_hub.transformations.shares import Shares
from dem_hub.transformations.thin_data import thin_data
from dem_hub.transformations.transformation import TensorDeltas, transform
from dem_hub.vectors.vector import DistributionVector

logger = logging.getLogger(__name__)

# What is added to each diagonal, relative to the mean of all: where no distribution has inputs, each vector then gets
# 1/N. On SmolLM2's demo 1e-6, 1e-4 and 1e-3 are equally good (benchmarks/README.md, `regmean.py`).
RIDGE = 1e-3

# The smallest gain that counts, of the largest: a distribution on which a vector gains nothing is not forgotten. Chosen
# by hand, not measured.
_SMALLEST_GAIN = 0.05

# Elements of a dense delta that are multiplied at a time, in float64: 32 MiB. Chosen by hand, not measured.
_BLOCK = 1 << 22


@dataclass(frozen=True)
class RegMean:
    """The transformation of vectors by the input statistics of their distributions, one for each vector."""

    name: ClassVar[str] = "regmean"
    statistics: tuple[InputStatistics, ...]
    architecture: Architecture
    ridge: float = RIDGE

    @property
    def settings(self) -> Mapping[str, Any]:
        """The ridge, and what data the statistics are of."""
        data = []
        for item, weight in zip(self.statistics, self.weights, strict=True):
            data.append({"sha256": item.data, "tokens": item.tokens, "weight": weight})
        return {"ridge": self.ridge, "data": data}

    @cached_property
    def weights(self) -> tuple[float, ...]:
        """How much the errors on each distribution count; 1 in the mean."""
        return weights_by_gain([_gain(item.data, self.statistics) for item in self.statistics])

    def delta(self, place: int, deltas: TensorDeltas) -> Delta:
        """Return one vector's delta of a tensor times its matrix; see [`Transformation.delta`]."""
        key = deltas.key
        delta = deltas.read(place)
        known = [_on(item.moments.get(key), deltas.device) for item in self.statistics]
        if not any(known):
            return _scaled(delta, self.weights[place] / sum(self.weights))
        module = self.architecture.modules.get(key)
        is_transposed = module is not None and module.transposed
        shares = Shares.of(known, self.ridge, self.weights)
        size = deltas.base.checkpoint[key].shape[0 if is_transposed else 1]
        if len(shares.scale) != size:
            raise ConfigError(
                f"'{key}' reads {size} numbers, and its input statistics are of {len(shares.scale)}: they are of "
                "another base. Gather them again."
            )
        if is_transposed:
            return _transposed(_shared(_transposed(delta), place, shares))
        return _shared(delta, place, shares)


def weights_by_gain(gains: Sequence[float | None]) -> tuple[float, ...]:
    """Return how much the errors on each distribution count, 1 in the mean.

    Args:
        gains (`Sequence[float]`): What is gained on each distribution, in nats a token. A gain below a twentieth of the
            largest counts as that much. If one is `None`, or none is positive, all count alike.

    Example:

    ```python
    >>> from dem_hub.transformations.regmean import weights_by_gain
    >>> weights_by_gain([0.25, 0.75]), weights_by_gain([0.25, None])
    ((0.5, 1.5), (1.0, 1.0))

    ```
    """
    known = [gain for gain in gains if gain is not None]
    if len(known) < len(gains) or max(known) <= 0:
        return (1.0,) * len(gains)
    floor = _SMALLEST_GAIN * max(known)
    floored = [max(gain, floor) for gain in known]
    mean = sum(floored) / len(floored)
    return tuple(gain / mean for gain in floored)


def _gain(data: str, statistics: Sequence[InputStatistics]) -> float | None:
    """Return what vectors gain on some data, the mean of those that have them for their own; `None` if it is not known.

    A weight is one of a distribution. So vectors of the same data are averaged, however much each of them gains.
    """
    gains = [item.gain for item in statistics if item.data == data]
    known = [gain for gain in gains if gain is not None]
    return fmean(known) if len(known) == len(gains) else None


def _on(moments: Moments | None, device: torch.device) -> Moments | None:
    """Return moments on a device."""
    return None if moments is None else moments.to(device)


def _shared(delta: Delta, place: int, shares: Shares) -> Delta:
    """Return delta @ M_i: of factors the right one, of a dense delta some rows at a time."""
    right = None
    if delta.right is not None:
        right = shares.apply(place, delta.right).to(delta.right)
    dense = None
    if delta.dense is not None:
        dense = torch.empty_like(delta.dense)
        for rows in row_blocks(full_index(dense.shape), _BLOCK):
            dense[rows] = shares.apply(place, delta.dense[rows]).to(dense)
    return Delta(left=delta.left, right=right, dense=dense)


def _scaled(delta: Delta, factor: float) -> Delta:
    right = None if delta.right is None else delta.right * factor
    dense = None if delta.dense is None else delta.dense * factor
    return Delta(left=delta.left, right=right, dense=dense)


def _transposed(delta: Delta) -> Delta:
    left = None if delta.right is None else delta.right.T
    right = None if delta.left is None else delta.left.T
    dense = None if delta.dense is None else delta.dense.T.contiguous()
    return Delta(left=left, right=right, dense=dense)


def regmean(  # noqa: PLR0913  every argument but two has a default
    base: str | os.PathLike[str] | VectorSource,
    vectors: Mapping[str, Any],
    *,
    columns: Mapping[str, str | Sequence[str]] | None = None,
    codec: str = "auto",
    tokenizer: Any = None,
    batch_size: int = BATCH_SIZE,
    max_length: int = MAX_LENGTH,
    dtype: str | None = SEARCH_DTYPE,
    device: str | torch.device | None = None,
    **model_kwargs: Any,
) -> dict[str, DistributionVector]:
    """Return vectors that are added with coefficient 1 each, from vectors and a little data of each distribution.

    The base and the fine-tune run over each distribution's data once; with statistics in place of all data no model is
    loaded. See the head of this module for what is computed. A LoRA stays a LoRA of the same rank. A single vector
    comes back unchanged.

    Args:
        base (`str`, `os.PathLike` or [`VectorSource`]): Hub id or folder of the base.
        vectors (`Mapping[str, Any]`): By Hub id or folder of each vector, data of its distribution in any form that
            [`Reader.windows`] reads; or `None` if the vector has input statistics beside it, in its folder or on the
            Hub. A few thousand tokens are enough.
        columns (`Mapping`, *optional*): By vector the columns of its data, where these have names of their own.
        codec (`str`, defaults to `"auto"`): How to store deltas that are no product of two factors.
        tokenizer (*optional*): By default that of the base.
        batch_size (`int`, defaults to 8): Windows in a forward pass.
        max_length (`int`, defaults to 1024): Tokens in a window.
        dtype (`str`, defaults to `"float32"`): Type of the model that runs; `None` is the base's own.
        device (`str` or `torch.device`, *optional*): Where the deltas are computed, in float64; the CPU by default.
        model_kwargs: Further arguments of [`DEMModel.from_pretrained`].

    Returns:
        `dict[str, DistributionVector]`: The transformed vectors, by the names of the originals. Their files are
        temporary until they are saved.

    Raises:
        `ConfigError`: A vector has neither data nor statistics, its data cannot be read, or the base needs remote code.
        `NotFoundError`: The base or a vector is not found.
        `BaseMismatchError`, `AdapterError`: A vector does not fit the base.

    Example:

    ```python
    >>> import tempfile
    >>> from dem_hub import DEMModel, DistributionVector, regmean
    >>> other_folder = tempfile.mkdtemp()
    >>> DistributionVector.extract(base_folder, finetuned_folder, codec="dense").save_pretrained(other_folder)
    >>> vectors = regmean(base_folder, {vector_folder: ["w1 w2 w3", "w4 w5"], other_folder: ["w7 w8 w9"]})
    >>> coefficients = {}
    >>> for vector in vectors.values():
    ...     folder = tempfile.mkdtemp()
    ...     vector.save_pretrained(folder)
    ...     coefficients[folder] = 1.0
    >>> type(DEMModel.from_pretrained(base_folder, vectors=coefficients)).__name__
    'LlamaForCausalLM'

    ```
    """
    encoder = encoder_from_name(codec, {})
    run = OwnData(columns, tokenizer, batch_size, max_length, dtype, model_kwargs)
    opened, statistics = run.gather(base, vectors)
    if len(statistics) == 1:
        return dict(zip(vectors, opened.vectors, strict=True))
    architecture = opened.base.architecture
    assert architecture is not None  # the statistics were gathered with it
    for warning in thin_data(architecture, dict(zip(vectors, statistics, strict=True))):
        logger.warning("%s", warning)
    without = [name for name, item in zip(vectors, statistics, strict=True) if item.gain is None]
    if without:
        logger.warning(
            "What %s gains on its own data is not known, so all distributions count alike. Gather its statistics from "
            "data: dem-hub statistics.",
            ", ".join(f"'{name}'" for name in without),
        )
    transformation = RegMean(tuple(statistics), architecture)
    transformed = transform(opened.base, opened.vectors, transformation, encoder, torch.device(device or "cpu"))
    return dict(zip(vectors, transformed, strict=True))
