"""The names of the files that dem_hub reads and writes.

A name that ends up on a user's disk or on the Hub is written down here and nowhere else. These names are part of
the file formats: a folder that was written under one of them must still be found, so none of them may change.
"""

import re

# Weights of any kind.

SAFETENSORS = ".safetensors"
INDEX_SUFFIX = ".index.json"  # appended to the name of the whole file: says which shard has which tensor
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # can run code when they are read, so they are refused

# A model, as transformers saves it.

MODEL_CONFIG = "config.json"
MODEL_WEIGHTS = "model.safetensors"
GENERATION_CONFIG = "generation_config.json"
MODEL_WEIGHT_FILES = "model*.safetensors*"  # a pattern: the single file, or all shards and their index

# Patterns of the files that are downloaded from a model's repository: safetensors, JSON, what a tokenizer needs,
# and remote code (which runs only with `trust_remote_code`). Pickles are never downloaded.
MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja", "*.py")

MODEL_CODE = "*.py"  # a pattern: remote code, in a model's folder

# Patterns of second copies of the same weights: in another precision (`model.fp16.safetensors`), or in the format
# of another library (Mistral's `consolidated.safetensors`). They match `MODEL_FILES` and are left out.
WEIGHT_COPIES = ("model.*.safetensors", "consolidated*.safetensors")

# What `AutoTokenizer`, `AutoProcessor` and `pipeline` need in a folder, in addition to the config and the weights.
SIDE_FILES = (
    GENERATION_CONFIG, "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "chat_template.jinja",
    "chat_template.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip

# A PEFT adapter.

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"  # how PEFT saved adapters before 0.6

# A vector. The part of it that is a LoRA is stored as a PEFT adapter in the same folder.

VECTOR_CONFIG = "vector_config.json"
VECTOR_STEM = "vector_model"  # of `vector_model.safetensors`, or of its shards and their index
VECTOR_FILES = (VECTOR_CONFIG, f"{VECTOR_STEM}*", ADAPTER_CONFIG, ADAPTER_WEIGHTS)

# What the config of a vector may name: files of tensors, their index, and the config of the adapter. A config from a
# stranger could name any other file of the folder, and a push would publish it.
VECTOR_FILE = re.compile(
    rf"{VECTOR_STEM}(-\d{{5}}-of-\d{{5}})?\.safetensors|{VECTOR_STEM}\.safetensors\.index\.json"
    r"|adapter_config\.json|adapter_model\.safetensors"
)

# Sidecars of a vector: files next to it that are no part of its sha256.

TRAINING_FACTS = "dem_training.json"  # how a PEFT adapter was trained; its own config has no place for that
NORMS_PLOT = "norms.png"
SIDECARS = (NORMS_PLOT, TRAINING_FACTS)

# A store of vectors, a recipe, and a merged model.

STORE_CONFIG = "vector_store.json"
STORE_CHANGE = ".vector_store.change.json"  # the change of a store that is being made, until its index has it
RECIPE_CONFIG = MODEL_CONFIG  # with `model_type: "dem"`, so that the Auto classes of transformers load a recipe
PROVENANCE_CONFIG = "dem_config.json"  # the recipe that a merged model was made from, in the model's folder
MERGED_FILES = "dem_files.json"  # the manifest of a merged model's folder: what the merge wrote
PERPLEXITY_PLOT = "perplexity.png"
CARD = "README.md"

# A saved result of a search.

SEARCH_RESULT = "search_result.json"
SEARCH_CACHE = "measured"  # folder of the measurements, within that of the result
MEASUREMENTS = "measured.jsonl"  # within the cache

# Written by transformers' Trainer.

TRAINER_STATE = "trainer_state.json"
