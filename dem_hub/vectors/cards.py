"""Text of the model cards of vectors and of stores.

The callers hand in what they know: nothing is read from disk or from the Hub here. A card states the base, the
codec and how far the stored delta is from the true one, so that a reader can judge a vector before downloading it.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from dem_hub.files.sizes import format_size
from dem_hub.hub.cards import (
    TAGS,
    Card,
    base_models,
    loading_code,
    markdown_link,
    markdown_table,
    provenance,
    shared_license,
)
from dem_hub.hub.foreign_text import code_span, code_string
from dem_hub.hub.listing import STORE_TAG, VECTOR_TAG
from dem_hub.vectors.config import VectorConfig

_DATASET = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def vector_card(
    repo_id: str,
    subfolder: str,
    config: VectorConfig | None,
    base: str | None,
    licenses: Mapping[str, str],
    training: Mapping[str, Any] | None = None,
    picture: str = "",
) -> Card:
    """Return the card of a vector or of a PEFT adapter.

    Args:
        repo_id (`str`): The repository of the vector.
        subfolder (`str`): The subfolder of the vector, or an empty string.
        config ([`VectorConfig`], *optional*): The vector's config; `None` for a PEFT adapter.
        base (`str`, *optional*): Hub id of the base.
        licenses (`Mapping[str, str]`): The license of each repository that the vector was made from.
        training (`Mapping[str, Any]`, *optional*): Training facts of an adapter. A vector's are in its config.
        picture (`str`, *optional*): File name of the plot of norms.
    """
    name = f"{repo_id}//{subfolder}" if subfolder else repo_id
    library = "peft"
    facts: dict[str, str] = {"base": markdown_link(base)}
    if config is not None:
        library = "dem-hub"
        training = config.training
        facts |= _vector_facts(config)
    training = training or {}
    for key, value in training.items():
        facts[key.replace("_", " ")] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    metadata = {
        "library_name": library,
        **base_models("adapter", [base]),
        "tags": [*TAGS, VECTOR_TAG],
        **shared_license(licenses),
    }
    named = training.get("datasets")
    # A data set of the Hub has a namespace. A name without one is that of a folder or of a loader.
    datasets = [name for name in named if _DATASET.fullmatch(str(name))] if isinstance(named, list) else []
    if datasets:
        metadata["datasets"] = datasets
    text = [
        "A distribution vector: the difference between a fine-tune and its base model. It is not a model by itself. "
        "Add it to the base with a coefficient.",
        markdown_table(("property", "value"), list(facts.items())),
    ]
    if picture:
        text.append(f"![The norm of the delta in each layer]({picture})")
    if base:
        text.append(loading_code(f"{code_string(base)}, vectors={{{code_string(name)}: 1.0}}"))
    text.append(provenance(licenses))
    return Card(name.rpartition("/")[2], metadata, "\n\n".join(text))


def store_card(
    repo_id: str, base: str | None, members: Mapping[str, tuple[str, int]], licenses: Mapping[str, str]
) -> Card:
    """Return the card of a store.

    Args:
        repo_id (`str`): The repository of the store.
        base (`str`, *optional*): Hub id of the base.
        members (`Mapping[str, tuple[str, int]]`): The codec and the size in bytes of each vector, by name.
        licenses (`Mapping[str, str]`): The license of each repository that the vectors were made from.
    """
    rows = [(code_span(name), codec, format_size(nbytes)) for name, (codec, nbytes) in sorted(members.items())]
    text = [
        f"These are distribution vectors of {markdown_link(base)}. Each is the difference between a fine-tune and this "
        "base model. Add them to the base with coefficients.",
        markdown_table(("vector", "codec", "size"), rows),
    ]
    if members:
        coefficients = ", ".join(
            f"{code_string(f'{repo_id}//{name}')}: {1 / len(members):.2g}" for name in sorted(members)
        )
        text.append(loading_code(f"{code_string(str(base))}, vectors={{{coefficients}}}"))
    text.append(provenance(licenses))
    metadata = {
        "library_name": "dem-hub",
        **base_models("adapter", [base]),
        "tags": [*TAGS, VECTOR_TAG, STORE_TAG],
        **shared_license(licenses),
    }
    return Card(repo_id.rpartition("/")[2], metadata, "\n\n".join(text))


def _vector_facts(config: VectorConfig) -> dict[str, str]:
    """Return the rows of the card's table that come from the config, without those that are empty."""
    records = list(config.tensors.values())
    norm = math.sqrt(sum(record.norm**2 for record in records))
    error = 0.0
    if norm:
        error = math.sqrt(sum((record.norm * record.relative_error) ** 2 for record in records)) / norm
    options = [f"{name}={value}" for name, value in config.codec_options.items()]
    facts = {
        "fine-tune": markdown_link(config.finetuned),
        "codec": " ".join([config.codec, *options]),
        "chosen": config.choice,
        "tensors changed": str(len(records)),
        "norm": f"{norm:.4g}",
        "relative error": f"{error:.3g}",
    }
    return {name: value for name, value in facts.items() if value}
