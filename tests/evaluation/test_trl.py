"""TRL's dataset formats: the ids and labels of every one are those of TRL's own tokenization and collator.

TRL puts the end-of-text token after a text or a completion that does not end in it, and this library does not; rows
of both kinds are compared.
"""

import json
from collections.abc import Mapping
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest

from dem_hub.errors import ConfigError
from dem_hub.evaluation.reader import Reader
from dem_hub.evaluation.windows import NOT_SCORED
from tests.support.windows import ids, labels

# With `{% generation %}` the template says itself what an answer is.
PLAIN = (
    "{% if tools %}w40 {% for tool in tools %}{{ tool['name'] }} {% endfor %}{% endif %}{% if brief %}w41 {% endif %}"
    "{% for m in messages %}{{ 'w50 ' if m['role'] == 'user' else 'w51 ' }}{{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}{{ 'w51 ' }}{% endif %}"
)
MARKED = PLAIN.replace(
    "{{ m['content'] }} {% endfor %}",
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }} w49 {% endgeneration %}"
    "{% else %}{{ m['content'] }} {% endif %}{% endfor %}",
)
# As those that drop the thoughts of earlier turns: a turn is not written as it was when it was the last one.
REWRITING = MARKED.replace(
    "{% for m in messages %}", "{% if messages | length > 2 %}w42 {% endif %}{% for m in messages %}"
)

TALK = [("user", "w1 w2"), ("assistant", "w3"), ("user", "w4"), ("assistant", "w5 w6")]
MESSAGES = [{"role": role, "content": content} for role, content in TALK]
TOOLS = [{"name": "w30"}, {"name": "w31"}]

FORMATS: dict[str, Any] = {
    "text": {"text": "w1 w2 w3"},
    "prompt and completion": {"prompt": "w1 w2", "completion": " w3 w4"},
    "prompt and completion in one word": {"prompt": "w1 w", "completion": "3 w4"},
    "messages": {"messages": MESSAGES},
    "messages of ShareGPT": {"conversations": [{"from": role, "value": content} for role, content in TALK]},
    "prompt and completion of messages": {"prompt": MESSAGES[:3], "completion": MESSAGES[3:]},
}
EXTRAS: dict[str, Any] = {
    "": {},
    "tools": {"tools": TOOLS},
    "tools as JSON": {"tools": json.dumps(TOOLS)},
    "no tools": {"tools": []},
    "options": {"chat_template_kwargs": {"brief": True}},
    "all": {"tools": TOOLS, "chat_template_kwargs": {"brief": True}, "id": 7},
}
TEMPLATES = {"marked": MARKED, "rewriting": REWRITING}


@pytest.fixture(params=["", "begin", "begin and end"])
def special(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    """The tokenizer, with special tokens at the beginning and the end of a text as other models have them."""
    from tokenizers.processors import TemplateProcessing

    if request.param:
        single = "[BOS] $A [EOS]" if "end" in request.param else "[BOS] $A"
        tokens = [("[BOS]", tokenizer.bos_token_id), ("[EOS]", tokenizer.eos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=tokens)
    return tokenizer


def by_trl(row: Mapping[str, Any], tokenizer: Any, *, answers_only: bool = False) -> tuple[list[int], list[int]]:
    """Return ids and labels of a row as `SFTTrainer` prepares and collates it."""
    from datasets import Dataset
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    trainer = SimpleNamespace(
        _tokenizer=tokenizer,
        chat_template=None,
        completion_only_loss="completion" in row or "completion_mask" in row,
    )
    arguments = SimpleNamespace(
        dataset_num_proc=None,
        dataset_text_field="text",
        assistant_only_loss=answers_only,
        max_length=None,
        shuffle_dataset=False,
    )
    prepared = SFTTrainer._prepare_dataset(
        trainer,
        Dataset.from_list([dict(row)]),
        tokenizer,
        arguments,
        packing=False,
        formatting_func=None,
        dataset_name="",
    )
    batch = DataCollatorForLanguageModeling(pad_token_id=0)([prepared[0]])
    return batch["input_ids"][0].tolist(), batch["labels"][0].tolist()


def by_reader(row: Any, tokenizer: Any) -> tuple[list[int], list[int]]:
    documents = Reader(lambda: tokenizer).documents([row])
    return ids(documents)[0], labels(documents)[0]


@pytest.mark.parametrize(("form", "ends"), list(product(["text", *list(FORMATS)[1:3]], [True, False])))
def test_standard_formats(form: str, ends: bool, special: Any) -> None:
    row = dict(FORMATS[form])
    last = "text" if form == "text" else "completion"
    if ends:
        row[last] += " [EOS]"
    expected = by_trl(row, special)
    if not ends:
        # What TRL has put there, before what the tokenizer puts at an end.
        place = len(expected[0]) - 1 - (expected[0][-2] == special.eos_token_id)
        for column in expected:
            assert column.pop(place) == special.eos_token_id
    assert by_reader(row, special) == expected


@pytest.mark.parametrize(("form", "extra", "template"), list(product(list(FORMATS)[3:], EXTRAS, TEMPLATES)))
def test_conversational_formats(form: str, extra: str, template: str, tokenizer: Any) -> None:
    tokenizer.chat_template = TEMPLATES[template]
    row = FORMATS[form] | EXTRAS[extra]
    assert by_reader(row, tokenizer) == by_trl(row, tokenizer, answers_only="completion" not in row)


@pytest.mark.parametrize("extra", EXTRAS)
def test_a_template_without_marks(extra: str, tokenizer: Any) -> None:
    """The same ids as TRL, and the answers are found turn by turn."""
    tokenizer.chat_template = PLAIN
    row = FORMATS["messages"] | EXTRAS[extra]
    found = by_reader(row, tokenizer)
    assert found[0] == by_trl(row, tokenizer)[0]
    assert [label for label in found[1] if label != NOT_SCORED] == tokenizer.convert_tokens_to_ids(["w3", "w5", "w6"])
    reply = FORMATS["prompt and completion of messages"] | EXTRAS[extra]
    assert by_reader(reply, tokenizer) == by_trl(reply, tokenizer)


MASKS: dict[str, Any] = {
    "none": {},
    "completion": {"completion_mask": [0, 0, 1, 1]},
    "answers": {"assistant_masks": [0, 1, 1, 0]},
    "both": {"completion_mask": [0, 0, 1, 1], "assistant_masks": [0, 1, 1, 0]},
    "labels": {"labels": [NOT_SCORED, 6, NOT_SCORED, 8]},
    "labels before masks": {"labels": [NOT_SCORED, 6, NOT_SCORED, 8], "completion_mask": [0, 0, 1, 1]},
}


@pytest.mark.parametrize("mask", MASKS)
def test_tokenized_rows(mask: str, tokenizer: Any) -> None:
    row = {"input_ids": [5, 6, 7, 8]} | MASKS[mask]
    assert by_reader(row, tokenizer) == by_trl(row, tokenizer)


def test_columns_that_are_empty_in_a_row(tokenizer: Any) -> None:
    """As in a table of several forms, where each row has the columns of all."""
    empty = dict.fromkeys(["text", "messages", "prompt", "completion", "tools", "chat_template_kwargs", "input_ids"])
    tokenizer.chat_template = MARKED
    for form in ("text", "messages", "prompt and completion"):
        assert by_reader(empty | FORMATS[form], tokenizer) == by_reader(FORMATS[form], tokenizer)


REFUSED: dict[str, tuple[Any, str]] = {
    "a prompt alone": ({"prompt": "w1"}, "Rows have the columns prompt; .*A prompt alone has no completion to score"),
    "preferences": (
        {"prompt": "w1", "chosen": "w2", "rejected": "w3"},
        "two completions: --columns NAME=prompt,chosen takes the one",
    ),
    "a rejected completion": ({"prompt": "w1", "completion": "w2", "label": False}, "its 'label' is False"),
    "steps": ({"prompt": "w1", "completions": ["w2"], "labels": [True]}, "A prompt alone has no completion"),
    "images": ({"messages": MESSAGES, "images": ["a.png"]}, "it has 'images', and only text is scored"),
    "a part that is an image": (
        {"messages": [{"role": "user", "content": [{"type": "image"}]}, MESSAGES[1]]},
        "message 0 has a part of the type 'image'",
    ),
    "all columns empty": (
        {"messages": None, "text": None},
        "columns messages, text, of which messages, text are empty",
    ),
    "a number": ({"text": 4}, "its 'text' is a int, 4, and no text"),
    "texts and messages": ({"prompt": "w1", "completion": MESSAGES[:1]}, "its 'prompt' is a str, and no list of mess"),
    "messages as JSON": ({"messages": json.dumps(MESSAGES)}, "its 'messages' is a str, and no list of messages"),
    "no messages": ({"messages": []}, "its 'messages' has no message"),
    "messages without roles": ({"messages": [{"speaker": "x"}]}, "message 0 of its 'messages' has the keys speaker"),
    "roles of ShareGPT": (
        {"messages": [{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2"}]},
        "have the roles human, gpt, and only what the role 'assistant' says is scored. Rename",
    ),
    "tools that are no JSON": ({"messages": MESSAGES, "tools": "[w"}, "its 'tools' is a text, and not JSON"),
    "tools that are no list": (
        {"messages": MESSAGES, "tools": {"a": 1}},
        "its 'tools' is a dict, and no list of tools",
    ),
    "options that are no mapping": ({"messages": MESSAGES, "chat_template_kwargs": [1]}, "is a list, and no mapping"),
    "another mask": (
        {"input_ids": [1, 2], "loss_mask": [0, 1]},
        "it has 'loss_mask', and the masks .* completion_mask",
    ),
    "a mask of another length": (
        {"input_ids": [1, 2], "completion_mask": [1]},
        "it has 2 input_ids and 1 values in its completion_mask",
    ),
    "packed by lengths": ({"input_ids": [1, 2, 3], "seq_lengths": [2, 1]}, "several documents packed into one row"),
    "packed by positions": ({"input_ids": [1, 2, 3], "position_ids": [0, 1, 0]}, "several documents packed"),
    "an id below 0": ({"input_ids": [1, -1]}, "it has the token id -1"),
    "a label below 0": ({"input_ids": [1, 2], "labels": [-1, 2]}, "it has the token id -1"),
    "bytes": (b"w1", "a bytes is no list of token ids"),
}


@pytest.mark.parametrize(("row", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_not_understood_is_refused_by_row(row: Any, message: str, tokenizer: Any) -> None:
    tokenizer.chat_template = PLAIN
    with pytest.raises(ConfigError, match=f"1 of 2 rows cannot be read.\n  - row 2: .*{message}"):
        Reader(lambda: tokenizer).windows(["w1 w2", row])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('No system role') }}", "TemplateError: No system role"),
        ("{{ messages[7]['content'] }}", "UndefinedError"),
        ("{{ messages[0]['content'] + 1 }}", "TypeError"),
        ("{% if %}", "TemplateSyntaxError"),
    ],
)
def test_a_template_that_fails(template: str, message: str, tokenizer: Any) -> None:
    tokenizer.chat_template = template
    row = {"messages": [{"role": "system", "content": "w1"}, *MESSAGES]}
    expected = f"row 1: the chat template does not take its messages, whose roles are system, user, .*{message}"
    with pytest.raises(ConfigError, match=expected):
        by_reader(row, tokenizer)
