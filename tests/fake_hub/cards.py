"""The Hub's reading of a README: its metadata, the tags that searches find, and faults that it refuses.

The rules are the Hub's documented ones as far as models need them; licenses are checked by form, not against the
Hub's list.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

FRONT = re.compile(r"\A---[ \t]*\r?\n(.*?)^---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)
REPO_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
RELATIONS = ("adapter", "finetune", "merge", "quantized")
SDKS = ("gradio", "docker", "static")
DOCS = "https://huggingface.co/docs/hub/model-cards#model-card-metadata"


def metadata(text: str) -> dict[str, Any]:
    """Return the front matter. It is empty if there is none, or none that can be read."""
    block = FRONT.match(text)
    try:
        found = yaml.safe_load(block[1]) if block else None
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}


def listed(value: Any) -> list[Any]:
    """Return one value or several as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def problems(text: str, kind: str = "model") -> tuple[list[str], list[str]]:
    """Return the faults that the Hub refuses in a README, and those that it only warns about."""
    block = FRONT.match(text)
    if not block or not block[1].strip():
        return [], [f"empty or missing yaml metadata in repo card ({DOCS})"]
    try:
        card = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"YAML metadata in README.md cannot be parsed: {error}"], []
    if not isinstance(card, dict):
        return ["YAML metadata in README.md must be a mapping"], []
    return [
        *_wrong_names(card),
        *_wrong_ids(card, "base_model", "model"),
        *_wrong_ids(card, "datasets", "dataset"),
        *_wrong_ids(card, "models", "model"),
        *_wrong_results(card),
        *(_wrong_space(card) if kind == "space" else []),
    ], []


def _wrong_space(card: Mapping[str, Any]) -> list[str]:
    """Return the faults of what says how a Space is built."""
    errors = []
    if card.get("sdk") not in SDKS:
        errors.append(f'"sdk" must be one of [{", ".join(SDKS)}]')
    versions = ("sdk_version", "python_version")
    errors += [f'"{key}" must be a string' for key in versions if not isinstance(card.get(key, ""), str)]
    if not re.fullmatch(r"cpu-[a-z]+|zero-a10g|[a-z0-9]+x?\d*", str(card.get("suggested_hardware", "cpu-basic"))):
        errors.append(f'"suggested_hardware" must be a machine of the Hub, not {card["suggested_hardware"]!r}')
    return errors


def _wrong_names(card: Mapping[str, Any]) -> list[str]:
    errors = [
        f'"{key}" must be a string'
        for key in ("library_name", "pipeline_tag", "license_name")
        if not isinstance(card.get(key, ""), str)
    ]
    if any(not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", str(one)) for one in listed(card.get("license"))):
        errors.append(f'"license" must be one of the Hub\'s identifiers, not {card["license"]!r}')
    if "tags" in card and (not isinstance(card["tags"], list) or not all(isinstance(tag, str) for tag in card["tags"])):
        errors.append('"tags" must be an array of strings')
    if card.get("base_model_relation", "merge") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of [{", ".join(RELATIONS)}]')
    return errors


def _wrong_ids(card: Mapping[str, Any], key: str, noun: str) -> list[str]:
    return [
        f'"{key}[{place}]" with value "{one}" is not valid. Use a {noun} id from https://hf.co/{noun}s.'
        for place, one in enumerate(listed(card.get(key)))
        if not isinstance(one, str) or not REPO_ID.fullmatch(one)
    ]


def _wrong_results(card: Mapping[str, Any]) -> list[str]:
    """Return the keys that are missing in `model-index`."""
    errors = []
    for i, model in enumerate(listed(card.get("model-index"))):
        if not isinstance(model, dict) or not model.get("name"):
            errors.append(f'"model-index[{i}].name" is required')
            continue
        for j, result in enumerate(listed(model.get("results"))):
            where = f"model-index[{i}].results[{j}]"
            wanted = {
                "task.type": ("task", "type"),
                "dataset.name": ("dataset", "name"),
                "dataset.type": ("dataset", "type"),
            }
            errors += [
                f'"{where}.{name}" is required'
                for name, (part, field) in wanted.items()
                if not (result.get(part) or {}).get(field)
            ]
            for k, metric in enumerate(listed(result.get("metrics"))):
                errors += [
                    f'"{where}.metrics[{k}].{field}" is required'
                    for field in ("type", "value")
                    if metric.get(field) is None
                ]
    return errors


def relation(card: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    """Return the relation of a model to its base: as the card says, or as the Hub infers."""
    if card.get("base_model_relation") in RELATIONS:
        return str(card["base_model_relation"])
    if card.get("library_name") == "peft" or "adapter_config.json" in files:
        return "adapter"
    if any(path.endswith(".gguf") for path in files):
        return "quantized"
    return "merge" if len(listed(card.get("base_model"))) > 1 else "finetune"


def tags(card: Mapping[str, Any], files: Mapping[str, Any]) -> list[str]:
    """Return the tags by which `list_models(filter=...)` finds a model."""
    bases = [str(base) for base in listed(card.get("base_model"))]
    found = [
        *listed(card.get("library_name")),
        *(name for name in ("safetensors", "gguf") if any(path.endswith(f".{name}") for path in files)),
        *listed(card.get("pipeline_tag")),
        *listed(card.get("tags")),
        *listed(card.get("language")),
        *(f"dataset:{one}" for one in listed(card.get("datasets"))),
        *(f"base_model:{base}" for base in bases),
        *(f"base_model:{relation(card, files)}:{base}" for base in bases),
        *(f"license:{one}" for one in listed(card.get("license"))),
        "region:us",
    ]
    return list(dict.fromkeys(map(str, found)))
