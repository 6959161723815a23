"""How far a model's predictions are from another's: the KL divergence of each scored token, in nats.

A divergence compares two whole distributions over the vocabulary, so those of the first model are kept in a file until
the second one has run. Memory holds one model and a few tokens at a time, however much text there is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dem_hub.defaults import BATCH_SIZE
from dem_hub.errors import ConfigError
from dem_hub.evaluation.likelihood import negative_log_likelihood, scored_logits
from dem_hub.evaluation.windows import Window

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Bytes of a log-probability on disk. In 16 bits, small divergences would be those of the rounding.
_BYTES = 4


@dataclass(frozen=True)
class Compared:
    """A model beside a reference: sums over the scored tokens of each window, (windows,) in float64, in nats.

    `losses` are negative log-likelihoods, and `divergences` are KL(reference || model).
    """

    losses: Tensor
    divergences: Tensor


def kept_bytes(tokens: int, vocabulary: int) -> int:
    """Return the size of the file of [`keep_predictions`]."""
    return tokens * vocabulary * _BYTES


def keep_predictions(
    model: "PreTrainedModel", windows: Sequence[Window], file: Path, batch_size: int = BATCH_SIZE
) -> Tensor:
    """Write the log-probabilities of all tokens of the vocabulary, at each scored token of some windows.

    Args:
        model (`PreTrainedModel`): The model.
        windows (`Sequence[Window]`): The windows.
        file (`Path`): The file to write.
        batch_size (`int`, *optional*, defaults to 8): Windows in one forward pass.

    Returns:
        `Tensor`: The negative log-likelihood of each window, in nats, (windows,) in float64.
    """
    losses = _zeros(windows)
    with torch.inference_mode(), file.open("wb") as stream:
        for scored in scored_logits(model, windows, batch_size):
            losses[scored.window] += negative_log_likelihood(scored)
            np.save(stream, scored.logits.log_softmax(-1).cpu().numpy())
    return losses


def compare(model: "PreTrainedModel", windows: Sequence[Window], file: Path, batch_size: int = BATCH_SIZE) -> Compared:
    """Compare a model's predictions with those of the model whose predictions were kept.

    Args:
        model (`PreTrainedModel`): The model.
        windows (`Sequence[Window]`): The windows of which predictions were kept.
        file (`Path`): What [`keep_predictions`] wrote.
        batch_size (`int`, *optional*, defaults to 8): Windows in one forward pass, as when they were kept.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the models have vocabularies of different sizes.
    """
    losses = _zeros(windows)
    divergences = _zeros(windows)
    with torch.inference_mode():
        for scored, kept in zip(scored_logits(model, windows, batch_size), _read(file), strict=True):
            if kept.shape != scored.logits.shape:
                raise ConfigError(
                    f"One model predicts {kept.shape[-1]} tokens and the other {scored.logits.shape[-1]}, so their "
                    "predictions cannot be compared."
                )
            losses[scored.window] += negative_log_likelihood(scored)
            each = divergence(kept.to(scored.logits.device), scored.logits.log_softmax(-1))
            divergences[scored.window] += float(each.cpu().double().sum())
    return Compared(losses, divergences)


def divergence(reference: Tensor, predicted: Tensor) -> Tensor:
    """Return KL(reference || predicted) of each of T tokens over a vocabulary of V, (T,), in nats.

    Args:
        reference (`Tensor`): Log-probabilities, (T, V), float32. They may be -inf.
        predicted (`Tensor`): Log-probabilities, (T, V), float32.

    Source: Kullback and Leibler, sum p log(p / q). Each term gets q - p, which is 0 in sum. Terms are then 0 or more,
    and the rounding of the logarithms cancels to the first order.
    """
    probabilities = reference.exp()
    terms = probabilities * (reference - predicted) + (predicted.exp() - probabilities)
    # 0 * log 0 is 0.
    return torch.where(probabilities == 0, predicted.exp(), terms).sum(-1)


def _read(file: Path) -> Iterator[Tensor]:
    with file.open("rb") as stream:
        while stream.peek(1):
            yield torch.from_numpy(np.load(stream, allow_pickle=False))


def _zeros(windows: Sequence[Window]) -> Tensor:
    return torch.zeros(len(windows), dtype=torch.float64, device="cpu")
