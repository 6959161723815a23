"""Forward passes over windows: the logits of every scored token, a few at a time, and from them the likelihood.

Windows of similar length share a batch, right-padded with a mask, and logits leave it in float32 in pieces, so that what is computed
from them is the same whatever the batch size, and nothing of the size of a batch times the vocabulary is ever copied.
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
from dem_hub.evaluation.windows import NOT_SCORED, Window

if TYPE_CHECKING:
    from transformers import PreTrainedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ROWS = 256  # scored tokens whose logits are put in float32 at a time


@dataclass(frozen=True)
class Likelihood:
    """The negative log-likelihood of a text under a model: its sum over tokens, in nats, and their number."""

    total: float
    tokens: int

    @property
    def loss(self) -> float:
        """Mean negative log-likelihood of a token, in nats."""
        return self.total / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)


@dataclass(frozen=True)
class Scored:
    """Some scored tokens of one window: which window, their logits, (T, V) in float32, and the tokens that came, (T,)."""

    window: int
    logits: Tensor
    targets: Tensor


def is_seq2seq(model: "PreTrainedModel") -> bool:
    """Whether its labels are another sequence than its input."""
    return bool(model.config.is_encoder_decoder)


def scored_tokens(windows: Sequence[Window], *, seq2seq: bool = False) -> list[int]:
    """How many tokens of each window are predicted."""
    return [sum(label != NOT_SCORED for label in (w.labels if seq2seq else w.labels[1:])) for w in windows]


def scored_logits(
    model: "PreTrainedModel", windows: Sequence[Window], batch_size: int = BATCH_SIZE
) -> Iterator[Scored]:
    """Run a model over windows; in no particular order of the windows, but always in the same one."""
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be 1 or more.")
    seq2seq = is_seq2seq(model)
    for places in batches(windows, batch_size):
        inputs = as_inputs([windows[place] for place in places], model.device, seq2seq=seq2seq)
        labels = inputs["labels"] if seq2seq else inputs.pop("labels")
        logits = model(**inputs, use_cache=False).logits
        for row, place in enumerate(places):
            wanted = labels[row] if seq2seq else labels[row, 1:]
            for part in torch.split((wanted != NOT_SCORED).nonzero().squeeze(1), _ROWS):
                yield Scored(place, logits[row, part].float(), wanted[part].to(logits.device))


def batches(windows: Sequence[Window], size: int) -> list[list[int]]:
    """The places of windows of similar length, the longest first."""
    order = sorted(range(len(windows)), key=lambda place: (-len(windows[place].input_ids), place))
    return [order[start : start + size] for start in range(0, len(order), size)]


def as_inputs(windows: Sequence[Window], device: torch.device, *, seq2seq: bool = False) -> dict[str, Tensor]:
    """Right-padded ids, mask and labels."""
    lengths = [len(window.input_ids) for window in windows]
    widest = max(lengths)
    widest_label = max(len(window.labels) for window in windows) if seq2seq else widest
    return {
        "input_ids": torch.tensor([_padded(window.input_ids, widest, 0) for window in windows], device=device),
        "attention_mask": torch.tensor([_padded((1,) * length, widest, 0) for length in lengths], device=device),
        "labels": torch.tensor([_padded(window.labels, widest_label, NOT_SCORED) for window in windows], device=device),
    }


def totals(model: "PreTrainedModel", windows: Sequence[Window], batch_size: int = BATCH_SIZE) -> Tensor:
    """The negative log-likelihood of each window, in nats, float64, (windows,)."""
    found = torch.zeros(len(windows), dtype=torch.float64)
    with torch.inference_mode():
        for scored in scored_logits(model, windows, batch_size):
            found[scored.window] += negative_log_likelihood(scored)
    return found


def negative_log_likelihood(scored: Scored) -> float:
    """Of some tokens, summed in float64."""
    return float(
        functional.cross_entropy(scored.logits.detach(), scored.targets, reduction="none").cpu().double().sum()
    )


def likelihood(model: "PreTrainedModel", windows: Sequence[Any], batch_size: int = BATCH_SIZE) -> Likelihood:
    """Score windows with a language model.

    Args:
        model (`PreTrainedModel`): on any device, in any dtype; the loss is computed in float32.
        windows (`Sequence[Window]`, or lists of token ids): each token but the first of a window is predicted from those before it;
            of a sequence-to-sequence model, the labels are.
        batch_size (`int`): windows in one forward pass; the result is the same whatever it is.

    Returns:
        [`Likelihood`]: summed over all predicted tokens.

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
    rows = [Window.of(window) for window in windows]
    tokens = sum(scored_tokens(rows, seq2seq=is_seq2seq(model)))
    if not tokens:
        raise ConfigError("There is nothing to score: no window has a token that is predicted from others.")
    return Likelihood(float(totals(model, rows, batch_size).sum()), tokens)


def _padded(values: Sequence[int], length: int, filler: int) -> list[int]:
    return [*values, *[filler] * (length - len(values))]


def evaluate(
    model: "PreTrainedModel", datasets: Mapping[str, Sequence[Any]], batch_size: int = BATCH_SIZE
) -> dict[str, Likelihood]:
    """The likelihood of each named distribution; see [`likelihood`]."""
    return {name: likelihood(model, windows, batch_size) for name, windows in datasets.items()}
