"""Rows as token ids and labels: which tokens of a row are scored, and rows that are refused."""

from typing import Any

import pytest

from dem_hub.errors import ConfigError
from dem_hub.evaluation.reader import Reader
from dem_hub.evaluation.windows import NOT_SCORED
from tests.support.windows import ids, labels

N = NOT_SCORED


def test_only_the_completion_is_scored(tokenizer: Any) -> None:
    assert labels(Reader(lambda: tokenizer).windows([{"prompt": "w1 w2", "completion": " w3"}])) == [[N, N, 7]]


@pytest.mark.parametrize("form", ["messages", "prompt and completion"])
def test_only_answers_of_a_conversation_are_scored(tokenizer: Any, form: str) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'w50 ' if m['role'] == 'user' else 'w51 ' }}{{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}{{ 'w51 ' }}{% endif %}"
    )
    turns = [("user", "w1 w2"), ("assistant", "w3"), ("user", "w4"), ("assistant", "w5 w6")]
    messages = [{"role": role, "content": content} for role, content in turns]
    row = {"messages": messages} if form == "messages" else {"prompt": messages[:3], "completion": messages[3:]}
    found = Reader(lambda: tokenizer).windows([row])
    assert ids(found) == [[54, 5, 6, 55, 7, 54, 8, 55, 9, 10]]
    # Of a prompt nothing is scored, not even what the assistant says in it: so does TRL.
    assert labels(found) == [[N, N, N, N, 7 if form == "messages" else N, N, N, N, 9, 10]]


def test_a_template_that_rewrites_earlier_turns_is_refused(tokenizer: Any) -> None:
    row = {
        "messages": [
            {"role": "user", "content": "w1"},
            {"role": "assistant", "content": "w2"},
            {"role": "user", "content": "w3"},
        ]
    }
    tokenizer.chat_template = "w{{ messages | length }} {% for m in messages %}{{ m['content'] }} {% endfor %}"
    with pytest.raises(ConfigError, match="writes the turns before message 1 differently than in the whole"):
        Reader(lambda: tokenizer).windows([row])


def test_seq2seq_rows(tokenizer: Any) -> None:
    found = Reader(lambda: tokenizer, is_seq2seq=True).windows(
        [{"prompt": "w1 w2", "completion": "w3"}, {"input_ids": [5], "labels": [6, 7]}]
    )
    assert list(zip(ids(found), labels(found), strict=True)) == [([5, 6], [7]), ([5], [6, 7])]


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (
            {"question": "w1", "answer": "w2"},
            {},
            "Rows have the columns question, answer; give 'text', 'messages' or 'input_ids'",
        ),
        ({"text": "w1"}, {"is_seq2seq": True}, "give 'prompt' and 'completion', or 'input_ids' and 'labels'"),
        ({"input_ids": [1, 2]}, {"is_seq2seq": True}, "has input_ids and no labels"),
        ({"input_ids": [1, 2], "labels": [1]}, {}, "it has 2 input_ids, 1 labels and 2 values in the attention mask"),
        ({"input_ids": [0.5, 1.0]}, {}, "is no list of token ids"),
        ({"input_ids": [[1, 2]]}, {}, r"of shape \[1, 2\] is no list of token ids"),
    ],
)
def test_rows_of_another_kind(tokenizer: Any, row: Any, options: dict[str, Any], message: str) -> None:
    good = {"input_ids": [1, 2], "labels": [1, 2]}
    with pytest.raises(ConfigError, match=f"1 of 2 rows cannot be read.\n  - row 2: .*{message}"):
        Reader(lambda: tokenizer, **options).windows([good, row])
