"""Answers of a model, as they come.

A model answers in a thread of its own. The thread ends when nobody reads any more, so that a browser that went away
does not keep the model from others.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dem_hub.errors import ConfigError
from dem_hub.evaluation.scorable import positions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# `role` (user or assistant) and `content` of what was said.
Message = dict[str, str]


@dataclass(frozen=True)
class Prompt:
    """What is asked, and how an answer is chosen.

    Args:
        messages (`Sequence[Message]`): A conversation, with `role` and `content` of each message; or texts
            to complete.
        is_chat (`bool`): Whether the messages go through the tokenizer's chat template.
        max_tokens (`int`): Tokens of an answer, at most.
        temperature (`float`): 0 takes the likeliest token each time.
    """

    messages: Sequence[Message]
    is_chat: bool = False
    max_tokens: int = 128
    temperature: float = 0.0

    def text(self, tokenizer: Any) -> str:
        """Return what the model reads."""
        if not self.is_chat:
            return "".join(message["content"] for message in self.messages)
        text: str = tokenizer.apply_chat_template(list(self.messages), add_generation_prompt=True, tokenize=False)
        return text


def answer(
    model: "PreTrainedModel", tokenizer: Any, prompt: Prompt, holding: Callable[[], AbstractContextManager[None]]
) -> Iterator[str]:
    """Yield the text of an answer so far, each time there is more of it.

    Args:
        model (`PreTrainedModel`): The model.
        tokenizer: Its tokenizer.
        prompt ([`Prompt`]): What is asked.
        holding (`Callable`): Returns a context in which the model belongs to this thread, with the weights to ask.

    Raises:
        `ConfigError`: The prompt is empty, or longer than the positions of the model allow.
        What `holding` and `generate` raise.
    """
    from transformers import StoppingCriteriaList, TextIteratorStreamer

    # A chat template writes the special tokens itself.
    inputs = tokenizer(prompt.text(tokenizer), return_tensors="pt", add_special_tokens=not prompt.is_chat)
    inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    _check_length(model, inputs["input_ids"].shape[1], prompt.max_tokens)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    stopped = threading.Event()
    errors: list[Exception] = []
    generate: Any = model.generate
    settings: dict[str, Any] = {
        "max_new_tokens": prompt.max_tokens,
        "do_sample": prompt.temperature > 0,
        "pad_token_id": tokenizer.eos_token_id,
    }
    if prompt.temperature > 0:
        settings["temperature"] = prompt.temperature

    def run() -> None:
        try:
            with holding():
                generate(
                    **inputs,
                    **settings,
                    streamer=streamer,
                    stopping_criteria=StoppingCriteriaList([lambda *_: stopped.is_set()]),
                )
        except Exception as error:  # noqa: BLE001  # it is raised below, in the thread that reads
            errors.append(error)
            streamer.end()

    threading.Thread(target=run, name="dem_hub-answer", daemon=True).start()
    text = ""
    try:
        for piece in streamer:
            text += piece
            yield text
    finally:
        stopped.set()
    if errors:
        raise errors[0]


def _check_length(model: "PreTrainedModel", tokens: int, more: int) -> None:
    """Refuse a prompt of no token, or one that leaves no room for an answer."""
    if not tokens:
        raise ConfigError("There is nothing to answer. Write something first.")
    limit = positions(model.config)
    if limit is not None and tokens + more > limit:
        raise ConfigError(
            f"The conversation has {tokens} tokens and the answer up to {more}, and the model takes {limit}. Clear the "
            "conversation, or ask for fewer tokens."
        )
