"""Which models have a likelihood of a text, and how long a text may be; both are told by the config alone.

The loss of a token is that of the token after those before it. A masked language model has seen the token, and a
classifier or a model without a head has no such loss, so that a number from one of them would mean nothing. These are
refused before weights are loaded.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dem_hub.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# Classes that predict the next token, by transformers' own lists.
_PREDICTING = (
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
    "MODEL_FOR_MULTIMODAL_LM_MAPPING_NAMES",
)

# XLNet and XLM predict masked or permuted tokens with classes that transformers lists as causal.
_NOT_CAUSAL = ("XLNetLMHeadModel", "XLMWithLMHeadModel", "FlaubertWithLMHeadModel")

# Names of the number of positions in a config.
_POSITIONS = (
    "max_position_embeddings",
    "max_seq_len",
    "max_sequence_length",
    "max_encoder_position_embeddings",
    "max_decoder_position_embeddings",
)

REMEDY = "Give score=, a function of the model, in place of data, or name a base that predicts the next token."


def refuse_not_scorable(config: "PretrainedConfig", architectures: Sequence[str] = ()) -> None:
    """Refuse a model that has no likelihood of a text.

    Args:
        config (`PretrainedConfig`): The config of the model.
        architectures (`Sequence[str]`, *optional*): The names of its class, if the config does not have them.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If its class is known and does not predict the next token.
    """
    names = tuple(architectures) or tuple(config.architectures or ())
    if not names:
        return
    reason = _reason(config, names[0])
    if reason:
        raise ConfigError(f"The model is a {names[0]}, and {reason}. {REMEDY}")


def is_scorable(config: "PretrainedConfig", class_name: str) -> bool:
    """Return whether a model of a class has a likelihood of a text; true if the class is not known."""
    return not _reason(config, class_name)


def is_known_causal(config: "PretrainedConfig", class_name: str) -> bool:
    """Return whether the config says that a model, which [`refuse_not_scorable`] let pass, is causal.

    Args:
        config (`PretrainedConfig`): The config of the model.
        class_name (`str`): The name of its class, if the config does not have it.
    """
    name = (config.architectures or [class_name])[0]
    parts = (config, config.get_text_config())
    if any(getattr(part, "use_bidirectional_attention", False) for part in parts):
        return False
    if any(getattr(part, "is_causal", True) is False for part in parts):
        return False
    return bool(config.is_encoder_decoder) or name in _predicting()


def positions(config: "PretrainedConfig") -> int | None:
    """Return how many positions a model has, or `None` if its texts may have any length.

    Rotary positions can be computed further, and learned ones cannot. A model was trained on neither.
    """
    text_config = config.get_text_config()
    known = [getattr(part, name, None) for part in (text_config, config) for name in _POSITIONS]
    counts = [count for count in known if isinstance(count, int) and count > 1]
    return min(counts, default=None)


def _reason(config: "PretrainedConfig", name: str) -> str:
    """Return why a class has no likelihood of a text, or nothing if it has one, or is not known."""
    from transformers.models.auto import modeling_auto

    masked = _names(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.values())
    predicting = _predicting()
    if name in _NOT_CAUSAL or (name in masked and name not in predicting) or name.endswith("ForMaskedLM"):
        return (
            "a masked language model sees the tokens on both sides of the one that it predicts: "
            "the loss of the next token means nothing"
        )
    if name in predicting:
        return _two_sided(config)
    if name in _names(modeling_auto.MODEL_MAPPING_NAMES.values()):
        return "it has no head that predicts tokens"
    if name.endswith(("Classification", "QuestionAnswering", "MultipleChoice", "NextSentencePrediction")):
        return "a classifier predicts no tokens"
    listed: set[str] = set()
    for mapping, classes in vars(modeling_auto).items():
        if mapping.endswith("_MAPPING_NAMES"):
            listed |= _names(classes.values())
    # A class that transformers does not list may be somebody's own language model.
    return "it does not predict the next token of a text" if name in listed else ""


def _predicting() -> set[str]:
    """Return the names of the classes that predict the next token."""
    from transformers.models.auto import modeling_auto

    names: set[str] = set()
    for mapping in _PREDICTING:
        names |= _names(getattr(modeling_auto, mapping, {}).values())
    return names


def _two_sided(config: "PretrainedConfig") -> str:
    """Return why the causal class of an encoder is not causal, as BERT's is without `is_decoder`."""
    from transformers.models.auto import modeling_auto

    of_type = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES.get(config.model_type, "")
    if of_type.endswith("ForMaskedLM") and not getattr(config, "is_decoder", False):
        return f"without is_decoder in its config it sees the tokens on both sides, as a {of_type} does"
    return ""


def _names(values: object) -> set[str]:
    """Return the names of classes; a mapping of transformers may have several for one kind of model."""
    names: set[str] = set()
    for value in values:  # type: ignore[attr-defined]
        names |= {value} if isinstance(value, str) else set(value)
    return names
