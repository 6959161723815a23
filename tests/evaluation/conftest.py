"""The tokenizer of the tiny models, whose token `w1` has id 5."""

from typing import Any

import pytest

from tests.support.tiny_models import Models


@pytest.fixture
def tokenizer(llama: Models) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(llama.base)
