"""The size of the vocabulary in the config of a merged model.

If vectors bring new tokens, the merged embeddings have more rows than the base's config says.
"""

from typing import TYPE_CHECKING

from dem_hub.merging.merge import Merge

if TYPE_CHECKING:
    from transformers import PretrainedConfig


def set_vocabulary(config: "PretrainedConfig", merge: Merge) -> None:
    """Set the size of the merged vocabulary in a config of transformers, in place, if vectors bring tokens."""
    if merge.vocabulary is not None:
        config.get_text_config().vocab_size = merge.vocabulary
