"""The size of the vocabulary in the config of a merged model.

If vectors bring new tokens, the merged embeddings have more rows than the base's config says.
"""

from typing import TYPE_CHECKING, Any

from dem_hub.merging.merge import Merge

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def set_vocabulary(config: "PretrainedConfig", merge: Merge) -> None:
    """Set the size of the merged vocabulary in a config of transformers, in place, if vectors bring tokens."""
    if merge.vocabulary is not None:
        config.get_text_config().vocab_size = merge.vocabulary


def set_vocabulary_in_json(config: dict[str, Any], merge: Merge) -> None:
    """Set the merged vocabulary's size in the data of a `config.json`, in place, without importing transformers.

    The language model of a model that also reads images has its config below `text_config`.
    """
    if merge.vocabulary is None:
        return
    text_config = config.get("text_config")
    if isinstance(text_config, dict):
        text_config["vocab_size"] = merge.vocabulary
    else:
        config["vocab_size"] = merge.vocabulary
