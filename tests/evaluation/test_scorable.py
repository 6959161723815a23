"""Models that have a likelihood of a text, models that have none, and the length of a window."""

import logging
from typing import Any

import pytest

from dem_hub.errors import ConfigError
from dem_hub.evaluation.reader import Reader
from dem_hub.evaluation.scorable import positions, refuse_not_scorable


def config(name: str, **options: Any) -> Any:
    """Return the default config of a class by its name."""
    import transformers

    made = getattr(transformers, name).config_class(**options)
    made.architectures = [name]
    return made


SCORABLE = [
    "LlamaForCausalLM", "GPT2LMHeadModel", "MambaForCausalLM", "T5ForConditionalGeneration",
    "BartForConditionalGeneration", "MBartForConditionalGeneration", "BartForCausalLM", "LlavaForConditionalGeneration",
    "Qwen2VLForConditionalGeneration", "Gemma3ForConditionalGeneration", "BloomForCausalLM",
]  # fmt: skip
NOT_SCORABLE = {
    "BertForMaskedLM": "a masked language model sees the tokens on both sides",
    "RobertaForMaskedLM": "a masked language model sees the tokens on both sides",
    "ModernBertForMaskedLM": "a masked language model sees the tokens on both sides",
    "DebertaV2ForMaskedLM": "a masked language model sees the tokens on both sides",
    "BertLMHeadModel": "without is_decoder in its config it sees the tokens on both sides, as a BertForMaskedLM does",
    "XLNetLMHeadModel": "a masked language model",
    "LlamaModel": "it has no head that predicts tokens",
    "BertModel": "it has no head that predicts tokens",
    "LlamaForSequenceClassification": "a classifier predicts no tokens",
    "BertForTokenClassification": "a classifier predicts no tokens",
    "BertForQuestionAnswering": "a classifier predicts no tokens",
    "WhisperForConditionalGeneration": "it does not predict the next token of a text",
    "ViTForImageClassification": "a classifier predicts no tokens",
}


@pytest.mark.parametrize("name", SCORABLE)
def test_models_with_a_likelihood(name: str) -> None:
    refuse_not_scorable(config(name))


@pytest.mark.parametrize(("name", "reason"), NOT_SCORABLE.items(), ids=NOT_SCORABLE)
def test_models_without_a_likelihood(name: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"The model is a {name}, and {reason}.* Give score="):
        refuse_not_scorable(config(name))


def test_a_decoder_of_the_bert_family_and_classes_of_others() -> None:
    refuse_not_scorable(config("BertLMHeadModel", is_decoder=True))
    other = config("LlamaForCausalLM")
    other.architectures = ["MyOwnLanguageModel"]
    refuse_not_scorable(other)
    other.architectures = None
    refuse_not_scorable(other)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("GPT2LMHeadModel", {"n_positions": 64}, 64),
        ("LlamaForCausalLM", {"max_position_embeddings": 96}, 96),
        ("OPTForCausalLM", {"max_position_embeddings": 32}, 32),
        ("BartForConditionalGeneration", {"max_position_embeddings": 48}, 48),
        ("MptForCausalLM", {"max_seq_len": 80}, 80),
        ("T5ForConditionalGeneration", {}, None),
        ("MambaForCausalLM", {}, None),
        ("BloomForCausalLM", {}, None),
    ],
)
def test_positions(name: str, options: dict[str, Any], expected: int | None) -> None:
    assert positions(config(name, **options)) == expected


@pytest.mark.parametrize("packing", [False, True])
def test_windows_are_never_longer_than_the_positions(
    tokenizer: Any, packing: bool, caplog: pytest.LogCaptureFixture
) -> None:
    reader = Reader.of_model(config("GPT2LMHeadModel", n_positions=16), lambda: tokenizer, 1024, packing=packing)
    with caplog.at_level(logging.WARNING):
        assert [len(window) for window in reader.windows([list(range(10))])] == [11 if packing else 10]
        assert not caplog.messages
        lengths = [len(window) for window in reader.windows([list(range(40)), [1, 2, 3]])]
    assert lengths == ([16, 16, 13] if packing else [16, 16, 8, 3])
    assert caplog.messages == [
        "The model has 16 positions, so that windows have 16 tokens and not max_length's 1024; 1 of 2 documents are longer."
    ]
