"""Conversations: messages in a tokenizer's chat template, and which of their tokens are an answer.

Rows mean what TRL's `SFTTrainer` means by them: `tools` and `chat_template_kwargs` go to the template, and what the
template marks as `{% generation %}` is the answer. A template without such marks is rendered turn by turn instead.
What a row or a template leaves unclear is refused, because a wrong guess would score other words than were trained on.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dem_hub.errors import ConfigError
from dem_hub.evaluation.token_ids import Tokens, masked, token_ids
from dem_hub.evaluation.windows import NOT_SCORED

Messages = list[dict[str, Any]]

ASSISTANT = "assistant"

# The keys of ShareGPT's messages, which TRL renames in the same way.
_SHARE_GPT = {"from": "role", "value": "content"}

_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")


def as_messages(value: Any, column: str) -> Messages:
    """Return the messages of a column, each with a role.

    Args:
        value: A list of mappings with `role` and `content`, or with ShareGPT's `from` and `value`.
        column (`str`): The column, for messages of errors.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it is no such list, or has images or sounds.
    """
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise ConfigError(
            f"its '{column}' is a {type(value).__name__}, and no list of messages such as "
            '[{"role": "user", "content": "..."}].'
        )
    messages = []
    for number, message in enumerate(value):
        if not isinstance(message, Mapping):
            raise ConfigError(f"message {number} of its '{column}' is a {type(message).__name__}, and no mapping.")
        renamed: dict[str, Any] = dict(message)
        for theirs, ours in _SHARE_GPT.items():
            if theirs in renamed:
                renamed[ours] = renamed.pop(theirs)
        if renamed.get("role") is None:
            raise ConfigError(
                f"message {number} of its '{column}' has the keys {', '.join(map(str, message))}. "
                "Give 'role' and 'content'."
            )
        _refuse_media(renamed.get("content"), number)
        messages.append(renamed)
    if not messages:
        raise ConfigError(f"its '{column}' has no message.")
    return messages


def is_messages(value: Any) -> bool:
    """Return whether a value of a row is a list of messages, and not a text."""
    return not isinstance(value, str | bytes | Mapping) and hasattr(value, "__iter__")


@dataclass(frozen=True)
class Renderer:
    """A tokenizer's chat template with the options of one row.

    Args:
        tokenizer: A tokenizer with a chat template.
        options (`Mapping[str, Any]`): Further arguments of `apply_chat_template`.
    """

    tokenizer: Any
    options: Mapping[str, Any]

    @classmethod
    def of(cls, tokenizer: Any, row: Mapping[str, Any]) -> "Renderer":
        """Return the renderer of a row, with its `tools` and `chat_template_kwargs`.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If the tokenizer has no chat template, or a column is of another kind.
        """
        if not getattr(tokenizer, "chat_template", None):
            raise ConfigError(
                "it has messages, and the tokenizer has no chat template. Give 'text', or a tokenizer with a template."
            )
        options: dict[str, Any] = {"tools": _tools(row.get("tools"))}
        extra = row.get("chat_template_kwargs") or {}
        if not isinstance(extra, Mapping):
            raise ConfigError(f"its 'chat_template_kwargs' is a {type(extra).__name__}, and no mapping.")
        return cls(tokenizer, {**options, **extra})

    @property
    def has_marks(self) -> bool:
        """True if the template says itself which tokens are answers. Only fast tokenizers can tell these apart."""
        if not getattr(self.tokenizer, "is_fast", False):
            return False
        template = self.options.get("chat_template")
        chosen = self.tokenizer.get_chat_template(template, self.options["tools"])
        return _GENERATION.search(chosen) is not None

    def ids(self, messages: Sequence[Mapping[str, Any]], *, prompt: bool = False) -> Tokens:
        """Return rendered messages; with `prompt`, the beginning of an answer follows them."""
        return token_ids(self._render(messages, add_generation_prompt=prompt)["input_ids"])

    def ids_and_mask(self, messages: Messages) -> tuple[Tokens, Tokens]:
        """Return rendered messages, and a 1 for each token that the template marks as an answer."""
        rendered = self._render(messages, return_assistant_tokens_mask=True)
        return token_ids(rendered["input_ids"]), token_ids(rendered["assistant_masks"])

    def _render(self, messages: Sequence[Mapping[str, Any]], **arguments: Any) -> Any:
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                list(messages), tokenize=True, return_dict=True, **{**self.options, **arguments}
            )
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # A template is a program of somebody else, and can fail in any of these ways.
            raise ConfigError(
                f"the chat template does not take its messages, whose roles are {_roles(messages)} "
                f"({type(error).__name__}: {error}). Change the messages, or give a tokenizer with another template."
            ) from error


def scored_answers(renderer: Renderer, messages: Messages) -> tuple[Tokens, Tokens]:
    """Return a conversation and its labels. Only the words of the assistant are scored.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If there is no answer, or the template does not let it be found.
    """
    if not any(message["role"] == ASSISTANT for message in messages):
        raise ConfigError(
            f"its messages have the roles {_roles(messages)}, and only what the role '{ASSISTANT}' says is scored. "
            f"Rename the roles ('human' to 'user', 'gpt' to '{ASSISTANT}'), or give 'text'."
        )
    if not renderer.has_marks:
        return _answers_by_turn(renderer, messages)
    ids, mask = renderer.ids_and_mask(messages)
    if not any(mask):
        raise ConfigError("the chat template marks no token of its messages as an answer.")
    return ids, masked(ids, mask)


def scored_reply(renderer: Renderer, prompt: Messages, completion: Messages) -> tuple[Tokens, Tokens]:
    """Return a conversation and its labels. Only what comes after the prompt is scored, as TRL has it.

    Source: `SFTTrainer` lets the completion begin where the rendered prompt and the whole conversation diverge.
    """
    before = renderer.ids(prompt, prompt=True)
    ids = renderer.ids([*prompt, *completion])
    return ids, labels_after(before, ids)


def labels_after(before: Tokens, ids: Tokens) -> Tokens:
    """Return the labels of ids of which the part that they have in common with `before` is context."""
    common = 0
    for token, other in zip(before, ids, strict=False):
        if token != other:
            break
        common += 1
    return (NOT_SCORED,) * common + ids[common:]


def _answers_by_turn(renderer: Renderer, messages: Messages) -> tuple[Tokens, Tokens]:
    """Find each answer as the tokens between two renderings.

    These are the turns before it with the generation prompt, and the turns up to it. That is right only if both are
    beginnings of the whole conversation, so a template that rewrites earlier turns is refused.
    """
    ids = renderer.ids(messages)
    labels = [NOT_SCORED] * len(ids)
    for number, message in enumerate(messages):
        if message["role"] != ASSISTANT:
            continue
        # Templates cannot render an empty list of turns, so nothing is before the first one.
        before = renderer.ids(messages[:number], prompt=True) if number else ()
        until = renderer.ids(messages[: number + 1])
        if ids[: len(before)] != before or ids[: len(until)] != until:
            raise ConfigError(
                f"the chat template writes the turns before message {number} differently than in the whole "
                "conversation, so that the answer cannot be told from its context. "
                "Give 'prompt' and 'completion', or 'input_ids' and 'labels'."
            )
        labels[len(before) : len(until)] = ids[len(before) : len(until)]
    return ids, tuple(labels)


def _tools(tools: Any) -> Any:
    """Return the tools of a row. TRL keeps them as JSON in a text too, because Arrow gives all tools the same keys."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"its 'tools' is a text, and not JSON ({error}).") from error
    if tools is not None and not is_messages(tools):
        raise ConfigError(f"its 'tools' is a {type(tools).__name__}, and no list of tools.")
    return None if tools is None else list(tools)


def _refuse_media(content: Any, number: int) -> None:
    """Refuse a message with parts that are no text, which a tokenizer would leave out."""
    if not is_messages(content):
        return
    for part in content:
        kind = part.get("type", "text") if isinstance(part, Mapping) else "text"
        if kind != "text":
            raise ConfigError(f"message {number} has a part of the type '{kind}', and only text is scored.")


def _roles(messages: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(dict.fromkeys(str(message["role"]) for message in messages))
