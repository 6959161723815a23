"""The config of a model: read, and refused where its weights are quantized."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.errors import CheckpointError
from dem_hub.files.names import MODEL_CONFIG
from dem_hub.files.strict_json import parse_json

if TYPE_CHECKING:
    pass


def read_config(folder: Path) -> dict[str, Any]:
    """A model folder's `config.json` as data; empty where there is none."""
    path = folder / MODEL_CONFIG
    return parse_json(path.read_bytes(), str(path)) if path.is_file() else {}


def refuse_quantized(folder: Path, role: str) -> None:
    """Refuse a checkpoint whose weights are quantised.

    Raises:
        `CheckpointError`: its config has a `quantization_config`.
    """
    quantization = read_config(folder).get("quantization_config")
    if quantization is not None:
        method = quantization.get("quant_method", "unknown method") if isinstance(quantization, dict) else quantization
        raise CheckpointError(
            f"The {role} '{folder}' is quantised ({method}): the difference would be one of rounded weights, not of what was learned. "
            f"Use the {role} in bf16, fp16 or fp32."
        )
