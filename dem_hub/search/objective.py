"""The objective of a search: the token-level negative log-likelihood of validation text, whose exponential is perplexity.

Every text is scored once, in windows of the model's context, right-padded with a mask; tokens are weighted alike whatever their batch,
so that the number does not depend on the batch size. (A mean of batch means, as a Trainer reports, does.)
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from dem_hub.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MAX_LENGTH = 1024
_LOGIT_ROWS = 256  # positions whose logits are put in float32 at a time


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


def read_texts(path: str | Path) -> list[str]:
    """The texts of a file: `.jsonl` with a `text` in each line, or any other file as one text.

    Raises:
        `ConfigError`: a line that is not JSON or has no `text`, or an empty file; names the line.
    """
    file = Path(path)
    try:
        content = file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 ({error}). Convert it.") from error
    if file.suffix != ".jsonl":
        texts = [content]
    else:
        texts = []
        for number, line in enumerate(content.splitlines(), 1):
            if line.strip():
                try:
                    texts.append("" + json.loads(line)["text"])
                except (ValueError, KeyError, TypeError) as error:
                    raise ConfigError(f'{file}, line {number}: not a JSON object with a "text" ({error!r}).') from error
    texts = [text for text in texts if text.strip()]
    if not texts:
        raise ConfigError(f"{file} has no text in it.")
    return texts


def tokenize(tokenizer: "PreTrainedTokenizerBase", texts: Sequence[str], max_length: int = MAX_LENGTH) -> list[list[int]]:
    """Token ids of each text, cut into windows of at most `max_length`; windows of a single token predict nothing and are left out."""
    _at_least(2, "max_length", max_length)
    windows = []
    for ids in tokenizer(list(texts), add_special_tokens=True)["input_ids"]:
        windows += [ids[start : start + max_length] for start in range(0, len(ids), max_length)]
    return [window for window in windows if len(window) > 1]


def likelihood(model: "PreTrainedModel", windows: Sequence[Sequence[int]], batch_size: int = 8) -> Likelihood:
    """Score windows of token ids with a causal language model.

    Args:
        model (`PreTrainedModel`): on any device, in any dtype; the loss is computed in float32.
        windows (`Sequence[Sequence[int]]`): token ids; each but the first of a window is predicted from those before it.
        batch_size (`int`): windows in one forward pass; the result is the same whatever it is.

    Returns:
        [`Likelihood`]: summed over all predicted tokens.

    Example:

    ```python
    >>> from transformers import AutoModelForCausalLM
    >>> from dem_hub.search.objective import likelihood
    >>> model = AutoModelForCausalLM.from_pretrained(base_folder, dtype="float32")
    >>> one, two = (likelihood(model, [[1, 2, 3, 4], [5, 6]], batch_size=size) for size in (1, 2))
    >>> one.tokens, abs(one.loss - two.loss) < 1e-6
    (4, True)

    ```
    """
    _at_least(1, "batch_size", batch_size)
    if not windows:
        raise ConfigError("There is nothing to score: every text is shorter than two tokens.")
    total, tokens = 0.0, 0
    for ids, mask in _batches(windows, batch_size):
        with torch.inference_mode():
            logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False).logits
        targets = ids.masked_fill(mask == 0, -100)[:, 1:].reshape(-1).to(logits.device)
        scores = logits[:, :-1].reshape(len(targets), -1)
        for start in range(0, len(targets), _LOGIT_ROWS):
            part = slice(start, start + _LOGIT_ROWS)
            total += float(functional.cross_entropy(scores[part].float(), targets[part], reduction="sum", ignore_index=-100).double())
        tokens += int((targets != -100).sum())
    return Likelihood(total, tokens)


def evaluate(model: "PreTrainedModel", datasets: Mapping[str, Sequence[Sequence[int]]], batch_size: int = 8) -> dict[str, Likelihood]:
    """The likelihood of each named distribution."""
    return {name: likelihood(model, windows, batch_size) for name, windows in datasets.items()}


def mean_loss(scores: Mapping[str, Likelihood]) -> float:
    """The objective: the mean over distributions of the mean loss of a token, that is the mean log-perplexity."""
    return sum(score.loss for score in scores.values()) / len(scores)


def _at_least(least: int, name: str, value: int) -> None:
    if value < least:
        raise ConfigError(f"{name} is {value}; it must be {least} or more.")


def _batches(windows: Sequence[Sequence[int]], size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of similar length together, right-padded, with their attention mask."""
    ordered = sorted(windows, key=len, reverse=True)
    for start in range(0, len(ordered), size):
        batch = ordered[start : start + size]
        length = len(batch[0])
        ids = torch.tensor([[*row, *[0] * (length - len(row))] for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in batch])
        yield ids, mask


def as_windows(tokenizer: Callable[[], Any], data: Any, max_length: int = MAX_LENGTH) -> list[list[int]]:
    """Token windows of what a user calls a dataset: texts, a path to them, or rows with `text` or `input_ids`.

    `tokenizer` gives the tokenizer, and is called for text only.

    Raises:
        `ConfigError`: rows of another kind.
    """
    if isinstance(data, (str, Path)):
        data = read_texts(data)
    rows = list(data)
    if rows and isinstance(rows[0], Mapping):
        column = next((name for name in ("input_ids", "text") if name in rows[0]), None)
        if column is None:
            raise ConfigError(f"Rows have the columns {', '.join(map(str, rows[0]))}; give 'text' or 'input_ids'.")
        rows = [row[column] for row in rows]
    if rows and isinstance(rows[0], str):
        return tokenize(tokenizer(), rows, max_length)
    _at_least(2, "max_length", max_length)
    return [list(row)[start : start + max_length] for row in rows for start in range(0, len(row), max_length) if len(row) - start > 1]
