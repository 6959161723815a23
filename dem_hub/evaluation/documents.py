"""Documents: one row of a dataset as token ids and labels, before it is cut into windows.

All forms of rows are told apart here and nowhere else. Of a conversation only the assistant's words are scored, and
of a prompt with a completion only the completion, as `SFTTrainer` trains on them.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from dem_hub.errors import ConfigError
from dem_hub.evaluation.windows import NOT_SCORED, Window

Tokens = tuple[int, ...]


def tokenize_row(row: Any, document: int, tokenizer: Callable[[], Any], *, is_seq2seq: bool = False) -> Window:
    """Return a row as one window, however long.

    Args:
        row: A text, a mapping as [`Reader.windows`] describes it, a list of token ids, or a window, which is returned
            as it is.
        document (`int`): The number of the document that the row is.
        tokenizer (`Callable`): Returns the tokenizer. It is called only if the row has text.
        is_seq2seq (`bool`): Whether the labels are another sequence than the input.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the row has none of the known forms, or its parts do not fit together.
    """
    if isinstance(row, Window):
        return row
    if isinstance(row, str):
        row = {"text": row}
    elif not isinstance(row, Mapping):
        row = {"input_ids": row}
    if "input_ids" in row and is_seq2seq:
        ids, labels = _given_pair(row)
    elif "input_ids" in row:
        ids, labels = _given_ids(row)
    elif "messages" in row:
        ids, labels = _scored_answers(tokenizer(), row["messages"])
    elif "prompt" in row and "completion" in row:
        ids, labels = _scored_completion(tokenizer(), row["prompt"], row["completion"], is_seq2seq=is_seq2seq)
    elif "text" in row and not is_seq2seq:
        ids = _token_ids(tokenizer()(row["text"])["input_ids"])
        labels = ids
    else:
        known = "'text', 'messages' or 'input_ids'"
        if is_seq2seq:
            known = "'prompt' and 'completion', or 'input_ids' and 'labels'"
        raise ConfigError(f"Rows have the columns {', '.join(map(str, row))}; give {known}.")
    return Window(ids, labels, document)


def _given_pair(row: Mapping[str, Any]) -> tuple[Tokens, Tokens]:
    """Return the ids and labels of a sequence-to-sequence model as they are."""
    if "labels" not in row:
        raise ConfigError("it has input_ids and no labels, and a sequence-to-sequence model scores its labels.")
    return _token_ids(row["input_ids"]), _token_ids(row["labels"])


def _given_ids(row: Mapping[str, Any]) -> tuple[Tokens, Tokens]:
    """Return the ids and labels of a causal model, without the tokens that the attention mask hides."""
    ids = _token_ids(row["input_ids"])
    labels = ids
    if row.get("labels") is not None:
        labels = _token_ids(row["labels"])
    mask: Tokens = (1,) * len(ids)
    if row.get("attention_mask") is not None:
        mask = _token_ids(row["attention_mask"])
    if not len(ids) == len(labels) == len(mask):
        raise ConfigError(
            f"it has {len(ids)} input_ids, {len(labels)} labels and {len(mask)} values in the attention mask. "
            "The three lengths must be equal."
        )
    return _visible(ids, mask), _visible(labels, mask)


def _visible(tokens: Tokens, mask: Tokens) -> Tokens:
    return tuple(token for token, is_visible in zip(tokens, mask, strict=True) if is_visible)


def _scored_completion(tokenizer: Any, prompt: Any, completion: Any, *, is_seq2seq: bool) -> tuple[Tokens, Tokens]:
    """Return a prompt and its completion, of which only the completion is scored. Both can be text or messages."""
    if is_seq2seq:
        return _token_ids(tokenizer(prompt)["input_ids"]), _token_ids(tokenizer(text_target=completion)["input_ids"])
    if not isinstance(prompt, str):
        return _scored_answers(tokenizer, [*prompt, *completion])
    context = _token_ids(tokenizer(prompt)["input_ids"])
    answer = _token_ids(tokenizer(completion, add_special_tokens=False)["input_ids"])
    return context + answer, (NOT_SCORED,) * len(context) + answer


def _scored_answers(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> tuple[Tokens, Tokens]:
    """Return a conversation in the tokenizer's chat template. Only the words of the assistant are scored.

    An answer is found as the tokens between two renderings: the turns before it with the generation prompt, and the
    turns up to it. That is right only if both are beginnings of the whole conversation, so a template that rewrites
    earlier turns is refused.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            "it has messages, and the tokenizer has no chat template. Give 'text', or a tokenizer with a template."
        )

    def render(turns: Sequence[Mapping[str, str]], *, prompt: bool = False) -> Tokens:
        rendered = tokenizer.apply_chat_template(
            list(turns), tokenize=True, return_dict=False, add_generation_prompt=prompt
        )
        return _token_ids(rendered)

    ids = render(messages)
    labels = [NOT_SCORED] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        # Templates cannot render an empty list of turns, so nothing is before the first one.
        before = render(messages[:number], prompt=True) if number else ()
        until = render(messages[: number + 1])
        if ids[: len(before)] != before or ids[: len(until)] != until:
            raise ConfigError(
                f"the chat template writes the turns before message {number} differently than in the whole "
                "conversation, so that the answer cannot be told from its context. "
                "Give 'prompt' and 'completion', or 'input_ids' and 'labels'."
            )
        labels[len(before) : len(until)] = ids[len(before) : len(until)]
    return ids, tuple(labels)


def _token_ids(values: Any) -> Tokens:
    ids = torch.as_tensor(values)
    # An empty list becomes a float tensor, and is a valid list of no ids.
    is_integer = not (ids.is_floating_point() or ids.is_complex()) or not ids.numel()
    if ids.dim() != 1 or not is_integer:
        raise ConfigError(f"{type(values).__name__} of shape {list(ids.shape)} is no list of token ids.")
    return tuple(ids.tolist())
