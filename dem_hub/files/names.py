"""The names of the files that dem_hub reads and writes.

A name that ends up on a user's disk or on the Hub is written down here and nowhere else. These names are part of
the file formats: a folder that was written under one of them must still be found, so none of them may change.
"""

import re

# Weights of any kind.

SAFETENSORS = ".safetensors"
INDEX_SUFFIX = ".index.json"  # appended to the name of the whole file: says which shard has which tensor
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # can run code when they are read, so they are refused
# An empty file in a folder whose weights are still on the Hub: the data of the files that stand in for them is zeros.
HEADERS_ONLY = ".dem_hub_headers_only"

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

# Side files: what stands beside a model's config and weights. These patterns are of the names that transformers,
# tokenizers, processors and sentence-transformers read in a folder; `tests/files/test_side_files.py` compares them with
# what the installed versions read and write. A `*` matches no slash.
MODULES = "modules.json"  # of sentence-transformers: the folder and the class of each module
SIDE_FILES = (
    GENERATION_CONFIG,
    # Tokenizers, of all kinds.
    "tokenizer.json", "tokenizer.*.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "*.model", "tokenizer.model.v*", "*.spm", "*.tiktoken", "tekken.json",
    "target_vocab.json", "vocab-src.json", "vocab-tgt.json", "bpe.codes", "dict.txt", "entity_vocab.json",
    "word_shape.json", "word_pronunciation.json", "normalizer.json", "emoji.json", "byte_maps.json",
    "prophetnet.tokenizer",
    # Chat templates.
    "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
    # Processors of images, videos and sound.
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
    "image_processor_config.json", "audio_tokenizer_config.json", "speaker_embeddings_path.json",
    # sentence-transformers.
    MODULES, "config_sentence_transformers.json", "sentence_*_config.json", "router_config.json",
)  # fmt: skip

TOKENIZER = "tokenizer.json"  # of the tokenizers library: all tokens, in one file
TOKENIZER_CONFIG = "tokenizer_config.json"
ADDED_TOKENS = "added_tokens.json"
SPECIAL_TOKENS = "special_tokens_map.json"

# Patterns of what a tokenizer is made of where there is no `tokenizer.json`.
TOKENIZER_MODELS = ("vocab.txt", "vocab.json", "*.model", "*.spm", "*.tiktoken", "tekken.json")

# Patterns of the names in the folder of a module of sentence-transformers, without its weights.
MODULE_FILES = (
    "config.json", "*_config.json", "config_*.json", "idf.json", "tokenizer.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "*.model", "chat_template.jinja",
)  # fmt: skip

# Patterns of what is no side file in a repository of the Hub, from where all others come along: what a merge writes
# itself, weights of any library, archives that may hold them, code, and hidden files. A `*` matches slashes too.
NO_SIDE_FILES = (
    MODEL_CONFIG, "README.md", "modelcard.json", "adapter_*", "vector_*", "dem_*.json", "trainer_state.json",
    f"*{SAFETENSORS}", f"*{INDEX_SUFFIX}", *(f"*{suffix}" for suffix in PICKLES),
    "*.gguf", "*.ggml", "*.onnx", "*.onnx_data", "*.onnx.data", "*.h5", "*.keras", "*.msgpack", "*.ot", "*.tflite", "*.pb", "*.npz", "*.npy",
    "*.mlmodel", "*.mlpackage/*", "*.mlmodelc/*", "*.nemo", "*.engine", "*.llamafile", "*.joblib", "*.pickle", "*.weights", "*.params", "*.xml",
    "*.zip", "*.tar", "*.gz", "*.tgz", "*.bz2", "*.xz", "*.7z", "*.rar", "*.zst", "*.parquet", "*.arrow", "*tfevents*",
    "*.py", "*.pyc", "*.ipynb", "*.sh", "*.bat", "*.ps1", "*.so", "*.dll", "*.dylib", "*.exe", "*.js", "*.ts", "*.c", "*.cc", "*.cpp",
    "*.cu", "*.cuh", "*.h", "*.hpp", "*.rs", "*.go", "*.java", "*.pl", "*.rb", "*.lua",
    ".*", "*/.*",
)  # fmt: skip

# A PEFT adapter.

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_PICKLE = "adapter_model.bin"  # how PEFT saved adapters before 0.6
MLX_WEIGHTS = "adapters.safetensors"  # of mlx-lm, whose config has the name of PEFT's

# A vector. The part of it that is a LoRA is stored as a PEFT adapter in the same folder.

VECTOR_CONFIG = "vector_config.json"
VECTOR_STEM = "vector_model"  # of `vector_model.safetensors`, or of its shards and their index
VECTOR_TOKENIZER = "vector_tokenizer.json"  # the `tokenizer.json` of an adapter that has an embedding
VECTOR_FILES = (VECTOR_CONFIG, f"{VECTOR_STEM}*", ADAPTER_CONFIG, ADAPTER_WEIGHTS, VECTOR_TOKENIZER)

# What the config of a vector may name: files of tensors, their index, and the config of the adapter. A config from a
# stranger could name any other file of the folder, and a push would publish it.
VECTOR_FILE = re.compile(
    rf"{VECTOR_STEM}(-\d{{5}}-of-\d{{5}})?\.safetensors|{VECTOR_STEM}\.safetensors\.index\.json"
    r"|adapter_config\.json|adapter_model\.safetensors"
)

# Sidecars of a vector: files next to it that are no part of its sha256.

TRAINING_FACTS = "dem_training.json"  # how a PEFT adapter was trained; its own config has no place for that
NORMS_PLOT = "norms.png"
INPUT_STATISTICS = "input_statistics.json"  # what the inputs of each layer look like, for RegMean
INPUT_STATISTICS_TENSORS = "input_statistics.safetensors"
STATISTICS_FILES = (INPUT_STATISTICS, INPUT_STATISTICS_TENSORS)
SIDECARS = (NORMS_PLOT, TRAINING_FACTS, *STATISTICS_FILES)

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
