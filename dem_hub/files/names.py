"""The names of files that dem_hub reads and writes. What lies on a user's disk is named here and nowhere else."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

if TYPE_CHECKING:
    pass

VECTOR_CONFIG = "vector_config.json"


VECTOR_STEM = "vector_model"


ADAPTER_CONFIG = "adapter_config.json"


ADAPTER_WEIGHTS = "adapter_model.safetensors"


PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


# What is wanted of a repository of weights: safetensors and JSON, and what a tokenizer needs. Never pickles.
MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py")


# The same weights again under other names, in another precision or another library's format.
TWINS = ("model.*.safetensors", "consolidated*.safetensors")


VECTOR_FILES = ("vector_config.json", "vector_model*", "adapter_config.json", "adapter_model.safetensors")


# What makes a folder usable by `AutoTokenizer` and `pipeline`, beside config.json and the weights.
SIDE_FILES = (
    "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip


RECIPE_CONFIG = "config.json"


PROVENANCE_CONFIG = "dem_config.json"  # the recipe beside a merged model


STORE_CONFIG = "vector_store.json"


TRAINING = "dem_training.json"  # of a PEFT adapter, whose own config has no place for it


NORMS = "norms.png"


COMPANIONS = (NORMS, TRAINING)


CARD = "README.md"


PICTURE = "perplexity.png"


RESULT = "search_result.json"


MEASURED = "measured"  # folder of the cache, within a saved result


MODEL_WEIGHTS = "model.safetensors"
