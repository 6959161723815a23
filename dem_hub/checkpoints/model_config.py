"""The `config.json` of a model, and the refusal of quantized weights."""

from pathlib import Path
from typing import Any

from dem_hub.errors import CheckpointError
from dem_hub.files.names import MODEL_CONFIG
from dem_hub.files.strict_json import read_json


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model folder's `config.json` as data; an empty dictionary if there is none."""
    path = folder / MODEL_CONFIG
    if not path.is_file():
        return {}
    return read_json(path, foreign=True)


def refuse_quantized(folder: Path, role: str) -> None:
    """Refuse a checkpoint whose weights are quantized.

    Args:
        folder (`Path`): The model's folder.
        role (`str`): What it is used as, for the message: "base" or "fine-tune".

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If its config has a `quantization_config`.
    """
    quantization = read_config(folder).get("quantization_config")
    if quantization is None:
        return
    method = quantization
    if isinstance(quantization, dict):
        method = quantization.get("quant_method", "unknown method")
    raise CheckpointError(
        f"The {role} '{folder}' is quantised ({method}): the difference would be one of rounded weights, not of "
        f"what was learned. Use the {role} in bf16, fp16 or fp32."
    )
