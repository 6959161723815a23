"""The files beside the weights of a merged model: its config, its tokenizer, and what comes along from the base.

An export writes them, and a recipe that is a base has them in a temporary folder, so that both are the same base.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import read_config
from dem_hub.checkpoints.writer import FLOAT_DTYPES
from dem_hub.errors import ConfigError
from dem_hub.files.atomic import write_text
from dem_hub.files.links import check_paths
from dem_hub.files.names import MODEL_CODE, RECIPE_CONFIG
from dem_hub.files.strict_json import dump_json
from dem_hub.hub.download import copy_side_files
from dem_hub.merging.merge import Merge
from dem_hub.merging.tokenizer_files import with_tokens


def float_dtype(name: str | None) -> torch.dtype | None:
    """Return the dtype that a model is merged into; `None` for each tensor's own.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a merge cannot write it.
    """
    if name is None:
        return None
    if name not in FLOAT_DTYPES:
        raise ConfigError(f"dtype is '{name}'; choose one of {', '.join(FLOAT_DTYPES)}.")
    return FLOAT_DTYPES[name]


def copied_files(base: Base) -> dict[str, Path]:
    """Return the base's files that are copied, by path: its side files, and its own code if it has some.

    Code is copied and not run. Whoever loads the model decides that with `trust_remote_code`.
    """
    code = {path.name: path for path in sorted(base.folder.glob(MODEL_CODE)) if path.is_file()}
    check_paths(code.values(), base.folder)
    return {**base.side_files, **code}


def tokenizer_texts(base: Base, merge: Merge) -> dict[str, str]:
    """Return the files of the tokenizer that differ from the base's, because vectors bring tokens, by path."""
    tokens = merge.tokens.merged
    return with_tokens(base.side_files, base.vocabulary, tokens) if tokens else {}


def config_texts(base: Base, merge: Merge, dtype: str | None) -> dict[str, str]:
    """Return the base's `config.json` with the merged dtype and vocabulary, by path; empty if the base has none."""
    config = read_config(base.folder)
    if not config:
        return {}
    if dtype is not None:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype
    set_vocabulary_in_json(config, merge)
    return {RECIPE_CONFIG: dump_json(config)}


def write_small_files(folder: Path, copies: Mapping[str, Path], texts: Mapping[str, str]) -> None:
    """Write files into a folder: copies first, and the texts that take the place of some of them."""
    copy_side_files(copies, folder)
    for name, text in texts.items():
        write_text(folder / name, text)


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
