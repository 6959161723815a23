"""Model cards of vectors and of stores."""

import math
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
from dem_hub.hub.listing import STORE_TAG, VECTOR_TAG
from dem_hub.hub.references import REPO_ID
from dem_hub.vectors.config import VectorConfig


def vector_card(
    repo_id: str,
    subfolder: str,
    config: VectorConfig | None,
    base: str | None,
    licenses: Mapping[str, str],
    training: Mapping[str, Any] | None = None,
    picture: str = "",
) -> Card:
    """The card of a vector, or of a PEFT adapter (`config` is `None`), with what it was trained on and a picture beside it."""
    name = f"{repo_id}//{subfolder}" if subfolder else repo_id
    facts = {"base": markdown_link(base)}
    training = (config.training if config is not None else training) or {}
    if config is not None:
        facts |= _vector_facts(config)
    facts |= {
        key.replace("_", " "): ", ".join(value) if isinstance(value, list) else str(value)
        for key, value in training.items()
    }
    metadata = {
        "library_name": "dem-hub" if config is not None else "peft",
        **base_models("adapter", [base]),
        "tags": [*TAGS, VECTOR_TAG],
        **shared_license(licenses),
    }
    datasets = [name for name in training.get("datasets") or () if REPO_ID.fullmatch(str(name))]
    if datasets:
        metadata["datasets"] = datasets
    what = "A distribution vector: what fine-tuning added to its base, theta_i - theta_0."
    text = [
        what,
        markdown_table(("", ""), list(facts.items())),
        f"![The norm of the delta in each layer]({picture})" if picture else "",
        loading_code(f'"{base}", vectors={{"{name}": 1.0}}') if base else "",
        provenance(licenses),
    ]
    return Card(name.rpartition("/")[2], metadata, "\n\n".join(part for part in text if part))


def store_card(
    repo_id: str, base: str | None, members: Mapping[str, tuple[str, int]], licenses: Mapping[str, str]
) -> Card:
    """The card of a store; of each vector its codec and its bytes."""
    rows = [(f"`{name}`", codec, format_size(nbytes)) for name, (codec, nbytes) in sorted(members.items())]
    chosen = ", ".join(f'"{repo_id}//{name}": {1 / len(members):.2g}' for name in sorted(members))
    text = [
        f"Distribution vectors of {markdown_link(base)}, to be added to it with coefficients.",
        markdown_table(("vector", "codec", "size"), rows),
        loading_code(f'"{base}", vectors={{{chosen}}}') if members else "",
        provenance(licenses),
    ]
    metadata = {
        "library_name": "dem-hub",
        **base_models("adapter", [base]),
        "tags": [*TAGS, VECTOR_TAG, STORE_TAG],
        **shared_license(licenses),
    }
    return Card(repo_id.rpartition("/")[2], metadata, "\n\n".join(part for part in text if part))


def _vector_facts(config: VectorConfig) -> dict[str, str]:
    records = list(config.tensors.values())
    norm = math.sqrt(sum(record.norm**2 for record in records))
    error = math.sqrt(sum((record.norm * record.relative_error) ** 2 for record in records)) / norm if norm else 0.0
    codec = " ".join([config.codec, *(f"{name}={value}" for name, value in config.codec_options.items())])
    facts = {
        "fine-tune": markdown_link(config.finetuned) if config.finetuned else "",
        "codec": codec,
        "chosen": config.choice,
    }
    facts |= {"tensors changed": str(len(records)), "norm": f"{norm:.4g}", "relative error": f"{error:.3g}"}
    return {name: value for name, value in facts.items() if value}
