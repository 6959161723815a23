"""Documents: one row of a dataset as token ids and labels, before it is cut into windows.

All forms of rows are told apart here and nowhere else, and they mean what TRL's dataset formats mean. Of a
conversation only the assistant's words are scored, and of a prompt with a completion only the completion. There is
one difference to `SFTTrainer`: no end-of-text token is put after a text or a completion that does not end in one.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

from dem_hub.errors import ConfigError
from dem_hub.evaluation.conversations import (
    Renderer,
    as_messages,
    is_messages,
    labels_after,
    scored_answers,
    scored_reply,
)
from dem_hub.evaluation.token_ids import Tokens, masked, token_ids, visible
from dem_hub.evaluation.windows import NOT_SCORED, Window

# Columns of media. A tokenizer would leave them out without a word.
_MEDIA = ("image", "images", "audio", "audios", "video", "videos")

# TRL's masks of the tokens that are scored.
_SCORED = ("completion_mask", "assistant_masks")

# Masks that tokenizers return and that do not say what is scored.
_OTHER_MASKS = ("attention_mask", "special_tokens_mask")

_BY_NAME = "Or say which columns are meant: --columns NAME=PROMPT,COMPLETION, in Python columns={name: [...]}."


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
    # The rows of a table have all columns. One that does not apply to a row is empty there.
    given = {name: value for name, value in row.items() if value is not None}
    if "input_ids" in given:
        ids, labels = _given_pair(given) if is_seq2seq else _given_ids(given)
    else:
        _refuse_what_is_no_text(given)
        ids, labels = _tokenized(given, tuple(row), tokenizer, is_seq2seq=is_seq2seq)
    _refuse_negative(ids, labels)
    return Window(ids, labels, document)


def _tokenized(
    row: Mapping[str, Any], columns: tuple[str, ...], tokenizer: Callable[[], Any], *, is_seq2seq: bool
) -> tuple[Tokens, Tokens]:
    """Return the ids and labels of a row with text. If it has several forms, the first of TRL's order counts."""
    if "prompt" in row and "completion" in row:
        return _scored_completion(tokenizer(), row, is_seq2seq=is_seq2seq)
    if not is_seq2seq:
        for name in ("messages", "conversations"):
            if name in row:
                messages = as_messages(row[name], name)
                return scored_answers(Renderer.of(tokenizer(), row), messages)
        if "text" in row:
            ids = token_ids(tokenizer()(_text(row, "text"))["input_ids"])
            return ids, ids
    known = "'text', 'messages' or 'input_ids'"
    if is_seq2seq:
        known = "'prompt' and 'completion', or 'input_ids' and 'labels'"
    empty = [name for name in columns if name not in row]
    but = f", of which {', '.join(map(str, empty))} are empty" if empty else ""
    raise ConfigError(f"Rows have the columns {', '.join(map(str, columns))}{but}; give {known}.{_advice(row)}")


def _advice(row: Mapping[str, Any]) -> str:
    """Return what to do about a row of a known form that has nothing to score, or of a form that is not known."""
    if "chosen" in row:
        return " A row of preferences has two completions: --columns NAME=prompt,chosen takes the one."
    if "prompt" in row:
        return " A prompt alone has no completion to score."
    return f" {_BY_NAME}"


def _refuse_what_is_no_text(row: Mapping[str, Any]) -> None:
    """Refuse a row with an image, a sound or a video, and one whose completion was rejected."""
    for name in _MEDIA:
        if name not in row:
            continue
        # An empty list is no image: a row has one where other rows of its dataset have images.
        is_empty_list = is_messages(row[name]) and not len(list(row[name]))
        if not is_empty_list:
            raise ConfigError(
                f"it has '{name}', and only text is scored. Leave the column out to score its text alone."
            )
    if "completion" in row and "label" in row and str(row["label"]) == "False":
        raise ConfigError(
            "its 'label' is False: its completion is one that was rejected. Leave such rows out, or the column."
        )


def _given_pair(row: Mapping[str, Any]) -> tuple[Tokens, Tokens]:
    """Return the ids and labels of a sequence-to-sequence model, without ids that the attention mask hides."""
    if "labels" not in row:
        raise ConfigError("it has input_ids and no labels, and a sequence-to-sequence model scores its labels.")
    ids = token_ids(row["input_ids"])
    mask = _mask(row, "attention_mask", len(ids))
    _refuse_lengths(ids, None, mask)
    return visible(ids, mask), token_ids(row["labels"])


def _given_ids(row: Mapping[str, Any]) -> tuple[Tokens, Tokens]:
    """Return the ids and labels of a causal model, without the tokens that the attention mask hides."""
    ids = token_ids(row["input_ids"])
    mask = _mask(row, "attention_mask", len(ids))
    _refuse_packed(row, mask)
    if "labels" in row:
        labels = token_ids(row["labels"])
        _refuse_lengths(ids, labels, mask)
    else:
        _refuse_unknown_masks(row)
        _refuse_lengths(ids, ids, mask)
        labels = ids
        for name in _SCORED:
            scored = _mask(row, name, len(ids))
            if len(scored) != len(ids):
                raise ConfigError(f"it has {len(ids)} input_ids and {len(scored)} values in its {name}.")
            labels = masked(labels, scored)
    return visible(ids, mask), visible(labels, mask)


def _mask(row: Mapping[str, Any], name: str, length: int) -> Tokens:
    """Return a mask of a row, of ones if there is none."""
    return token_ids(row[name]) if name in row else (1,) * length


def _refuse_lengths(ids: Tokens, labels: Tokens | None, mask: Tokens) -> None:
    if len(ids) == len(mask) and (labels is None or len(labels) == len(ids)):
        return
    of_labels = "" if labels is None else f", {len(labels)} labels"
    raise ConfigError(
        f"it has {len(ids)} input_ids{of_labels} and {len(mask)} values in the attention mask. "
        "The three lengths must be equal."
    )


def _refuse_unknown_masks(row: Mapping[str, Any]) -> None:
    for name in row:
        if "mask" in str(name) and name not in (*_SCORED, *_OTHER_MASKS):
            raise ConfigError(
                f"it has '{name}', and the masks that say what is scored are {' and '.join(_SCORED)}. Rename it, give "
                "'labels' with -100 where nothing is scored, or leave it out."
            )


def _refuse_packed(row: Mapping[str, Any], mask: Tokens) -> None:
    """Refuse a row of several documents. Their tokens would see each other, as they did not in training."""
    lengths = token_ids(row["seq_lengths"]) if "seq_lengths" in row else ()
    positions = token_ids(row["position_ids"]) if "position_ids" in row else ()
    if len(positions) == len(mask):
        positions = visible(positions, mask)
    begins_again = any(after != before + 1 for before, after in pairwise(positions))
    if len(lengths) > 1 or begins_again:
        raise ConfigError("it is several documents packed into one row. Give the rows as they were before packing.")


def _refuse_negative(ids: Tokens, labels: Tokens) -> None:
    """Refuse token ids that no tokenizer has, before a model meets them."""
    wrong = [token for token in ids if token < 0]
    wrong += [label for label in labels if label < 0 and label != NOT_SCORED]
    if wrong:
        raise ConfigError(
            f"it has the token id {wrong[0]}. Ids begin at 0; a label that is not scored is {NOT_SCORED}."
        )


def _scored_completion(tokenizer: Any, row: Mapping[str, Any], *, is_seq2seq: bool) -> tuple[Tokens, Tokens]:
    """Return a prompt and its completion, of which only the completion is scored. Both can be text or messages."""
    if any(is_messages(row[name]) for name in ("prompt", "completion")):
        if is_seq2seq:
            raise ConfigError("its prompt is messages, and a sequence-to-sequence model reads text. Give texts.")
        prompt, completion = (as_messages(row[name], name) for name in ("prompt", "completion"))
        return scored_reply(Renderer.of(tokenizer, row), prompt, completion)
    context, answer = _text(row, "prompt"), _text(row, "completion")
    if is_seq2seq:
        return token_ids(tokenizer(context)["input_ids"]), token_ids(tokenizer(text_target=answer)["input_ids"])
    # Together, so that nothing that the tokenizer puts at an end stands between them.
    ids = token_ids(tokenizer(context + answer)["input_ids"])
    return ids, labels_after(token_ids(tokenizer(context)["input_ids"]), ids)


def _text(row: Mapping[str, Any], name: str) -> str:
    text = row[name]
    if not isinstance(text, str):
        raise ConfigError(f"its '{name}' is a {type(text).__name__}, {text!r}, and no text.")
    return text
