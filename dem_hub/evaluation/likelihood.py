"""Likelihoods of windows under a model, from forward passes.

Windows of similar length share a batch, right-padded with a mask. The logits of scored tokens are put in float32 a
few at a time, so that a result is the same for every batch size, and a tensor of the size of a batch times the
vocabulary is never copied.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from dem_hub.defaults import BATCH_SIZE
from dem_hub.errors import ConfigError
from dem_hub.evaluation.causality import refuse_two_sided
from dem_hub.evaluation.scorable import refuse_not_scorable
from dem_hub.evaluation.windows import NOT_SCORED, Window, count_scored

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Bytes of scored tokens' logits that are worked on at a time, in float32: 85 tokens over a vocabulary of 49,152. glibc
# gives memory of more than 32 MiB back when it is free, and the system prepares its pages anew each time. With 256 such
# tokens a likelihood took twice as long, and a shortlist's logits three times (by hand, on two cores of a Xeon).
_PIECE_BYTES = 16 << 20

# Bytes of a batch's logits, in float32, beyond which it has fewer windows: 2,730 tokens over a vocabulary of 49,152.
# Chosen by hand, not measured.
PASS_LOGIT_BYTES = 512 << 20


@dataclass(frozen=True)
class Likelihood:
    """The likelihood of a text under a model: `total`, its negative logarithm summed over `tokens` tokens, in nats."""

    total: float
    tokens: int

    @property
    def loss(self) -> float:
        """The mean negative log-likelihood of a token, in nats."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """The perplexity, exp(loss)."""
        return math.exp(self.loss)


@dataclass(frozen=True)
class Scored:
    """T scored tokens of one window.

    `window` is the number of the window. `logits`, (T, V), are float32, and `targets`, (T,), are the tokens that came.
    The logits may be the model's own, and are not to be changed.
    """

    window: int
    logits: Tensor
    targets: Tensor


def is_seq2seq(model: "PreTrainedModel") -> bool:
    """Return whether a model's labels are another sequence than its input."""
    return bool(model.config.is_encoder_decoder)


def scored_tokens(windows: Sequence[Window], *, seq2seq: bool = False) -> list[int]:
    """Return how many tokens of each window are predicted."""
    return [count_scored(window, is_seq2seq=seq2seq) for window in windows]


def run_tokens(windows: Sequence[Window], *, seq2seq: bool = False) -> int:
    """Return how many tokens a forward pass over windows runs through the model, in the encoder and the decoder."""
    count = sum(len(window.input_ids) for window in windows)
    if seq2seq:
        count += sum(len(window.labels) for window in windows)
    return count


def scored_logits(
    model: "PreTrainedModel", windows: Sequence[Window], batch_size: int = BATCH_SIZE
) -> Iterator[Scored]:
    """Run a model over windows, and yield the logits of their scored tokens in pieces of one window.

    The order of the windows is not theirs, but it is always the same. The tokens of a window come in order.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If `batch_size` is below 1, or the model sees the tokens on both sides.
    """
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be 1 or more.")
    refuse_two_sided(model, windows)
    seq2seq = is_seq2seq(model)
    for places in batches(windows, batch_size, vocabulary_of(model)):
        inputs = as_inputs([windows[place] for place in places], model.device)
        # A sequence-to-sequence model makes its decoder's input from the labels. A causal model would only compute a
        # loss from them.
        labels = inputs["labels"] if seq2seq else inputs.pop("labels")
        logits = model(**inputs, use_cache=False).logits
        for row, place in enumerate(places):
            yield from pieces(place, logits[row], labels[row] if seq2seq else labels[row, 1:])


def pieces(window: int, logits: Tensor, targets: Tensor) -> Iterator[Scored]:
    """Yield the logits of a window's scored tokens in pieces.

    Args:
        window (`int`): The number of the window.
        logits (`torch.Tensor`): What the model answers at each place, (T, V) in any dtype.
        targets (`torch.Tensor`): The token that comes there, or `NOT_SCORED`; (T,), or shorter, on any device.
    """
    places = (targets != NOT_SCORED).nonzero().squeeze(1)
    if not len(places):
        return
    for piece in torch.split(places, rows_at_once(logits.shape[1])):
        yield Scored(window, _rows(logits, piece).float(), targets[piece].to(logits.device))


def _rows(logits: Tensor, places: Tensor) -> Tensor:
    """Return the logits at some places, in order: a view where they are next to each other, as mostly they are."""
    first, last = int(places[0]), int(places[-1])
    if last - first + 1 == len(places):
        return logits[first : last + 1]
    return logits[places.to(logits.device)]


def vocabulary_of(model: "PreTrainedModel") -> int:
    """Return the number of logits that a model answers for a token.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If neither the model's configuration nor its output layer says it.
    """
    size = getattr(model.config.get_text_config(), "vocab_size", None)
    if size is None:  # a model's own code may call it otherwise
        size = getattr(model.get_output_embeddings(), "out_features", None)
    if size is None:
        raise ConfigError(
            f"{type(model).__name__} does not say how many tokens its vocabulary has. Give its configuration a "
            "'vocab_size', or let its get_output_embeddings() return its output layer."
        )
    return int(size)


def batches(windows: Sequence[Window], size: int, vocabulary: int) -> list[list[int]]:
    """Return the places of windows in batches of similar length, of at most `size` windows.

    The longest come first, so that too little memory shows in the first batch.
    """
    order = sorted(range(len(windows)), key=lambda place: (-len(windows[place].input_ids), place))
    found: list[list[int]] = []
    width = 0
    for place in order:
        length = len(windows[place].labels)
        # Labels of a sequence-to-sequence model can be longer than those before, and leave room for fewer windows.
        if not found or len(found[-1]) >= windows_at_once(size, max(width, length), vocabulary):
            found.append([])
            width = 0
        found[-1].append(place)
        width = max(width, length)
    return found


def windows_at_once(size: int, length: int, vocabulary: int) -> int:
    """Return how many windows of at most `length` tokens a batch has.

    They are `size`, or as many as have room for their logits, and at least one.
    """
    return max(1, min(size, PASS_LOGIT_BYTES // (4 * vocabulary * max(length, 1))))


def rows_at_once(vocabulary: int) -> int:
    """Return of how many tokens the logits are put in float32 at a time."""
    return max(1, _PIECE_BYTES // (4 * vocabulary))


def as_inputs(windows: Sequence[Window], device: torch.device) -> dict[str, Tensor]:
    """Return `input_ids`, `attention_mask` and `labels` of windows as right-padded tensors, (windows, tokens) each."""
    lengths = [len(window.input_ids) for window in windows]
    width = max(lengths)
    label_width = max(len(window.labels) for window in windows)
    ids = [_pad(window.input_ids, width, 0) for window in windows]
    mask = [_pad((1,) * length, width, 0) for length in lengths]
    labels = [_pad(window.labels, label_width, NOT_SCORED) for window in windows]
    return {
        "input_ids": torch.tensor(ids, device=device),
        "attention_mask": torch.tensor(mask, device=device),
        "labels": torch.tensor(labels, device=device),
    }


def totals(model: "PreTrainedModel", windows: Sequence[Window], batch_size: int = BATCH_SIZE) -> Tensor:
    """Return the negative log-likelihood of each window, in nats, (windows,) in float64."""
    window_totals = torch.zeros(len(windows), dtype=torch.float64, device="cpu")
    with torch.inference_mode():
        for scored in scored_logits(model, windows, batch_size):
            window_totals[scored.window] += negative_log_likelihood(scored)
    return window_totals


def negative_log_likelihood(scored: Scored) -> float:
    """Return the negative log-likelihood of some tokens, in nats, computed in float32 and summed in float64."""
    losses = functional.cross_entropy(scored.logits.detach(), scored.targets, reduction="none")
    # On the CPU, because not every device has float64.
    return float(losses.cpu().double().sum())


def likelihood(model: "PreTrainedModel", windows: Sequence[Any], batch_size: int = BATCH_SIZE) -> Likelihood:
    """Score windows with a language model.

    Args:
        model (`PreTrainedModel`): A model on any device, in any dtype. The loss is computed in float32.
        windows (`Sequence[Window]`, or lists of token ids): Every token of a window but the first is predicted from
            those before it. A sequence-to-sequence model predicts the labels.
        batch_size (`int`, *optional*, defaults to 8): Windows in one forward pass. The result does not depend on it.

    Returns:
        [`Likelihood`]: The sum over all predicted tokens.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If no window has a token that is predicted, `batch_size` is below 1, or the
            model does not predict the next token.

    Example:

    ```python
    >>> from transformers import AutoModelForCausalLM
    >>> from dem_hub.evaluation.likelihood import likelihood
    >>> model = AutoModelForCausalLM.from_pretrained(base_folder, dtype="float32")
    >>> one, two = (likelihood(model, [[1, 2, 3, 4], [5, 6]], batch_size=size) for size in (1, 2))
    >>> one.tokens, abs(one.loss - two.loss) < 1e-6
    (4, True)

    ```
    """
    refuse_not_scorable(model.config, (type(model).__name__,))
    rows = [Window.of(window) for window in windows]
    tokens = sum(scored_tokens(rows, seq2seq=is_seq2seq(model)))
    if not tokens:
        raise ConfigError("There is nothing to score: no window has a token that is predicted from others.")
    return Likelihood(float(totals(model, rows, batch_size).sum()), tokens)


def evaluate(
    model: "PreTrainedModel", datasets: Mapping[str, Sequence[Any]], batch_size: int = BATCH_SIZE
) -> dict[str, Likelihood]:
    """Return the likelihood of each named dataset; see [`likelihood`]."""
    return {name: likelihood(model, windows, batch_size) for name, windows in datasets.items()}


def _pad(values: Sequence[int], length: int, filler: int) -> list[int]:
    return [*values, *[filler] * (length - len(values))]
