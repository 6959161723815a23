"""The `config.json` of a model, and the refusal of quantized weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dem_hub.checkpoints.reader import TensorInfo
from dem_hub.errors import CheckpointError
from dem_hub.files.names import MODEL_CONFIG
from dem_hub.files.strict_json import read_json

# Last parts of the names under which quantized weights are stored: of GPTQ and AWQ (`qweight`, `qzeros`, `g_idx`),
# compressed-tensors (`weight_packed`), bitsandbytes (`SCB`) and HQQ (`W_q`).
_PACKED = re.compile(r"qweight|qzeros|g_idx|weight_packed|weight_shape|weight_g_idx|weight_zero_point|W_q|SCB")

# The scale of a weight, beside the weight: of compressed-tensors, ModelOpt, DeepSeek (`_inv`), Quanto and
# bitsandbytes. `logit_scale` and `layer_scale` are parameters of models and no such scale.
_SCALE = re.compile(r"weight_scales?(_inv|_2)?|weight_(global_scale|zero_point|packed)|scales|SCB")

# What bitsandbytes stores below the name of a weight of 4 bits.
_BITSANDBYTES = frozenset(["absmax", "quant_map", "nested_absmax", "nested_quant_map", "nested_offset"])


def read_config(folder: Path) -> dict[str, Any]:
    """Return a model folder's `config.json` as data; an empty dictionary if there is none."""
    path = folder / MODEL_CONFIG
    if not path.is_file():
        return {}
    return read_json(path, foreign=True)


def refuse_quantized(folder: Path, role: str) -> None:
    """Refuse a checkpoint that its config calls quantized.

    Args:
        folder (`Path`): The model's folder.
        role (`str`): What it is used as, for the message: "base" or "fine-tune".

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If its config has a `quantization_config`.
    """
    method = _quantization_in_config(folder)
    if method:
        raise _quantized(folder, role, method)


def refuse_quantized_tensors(
    tensors: Mapping[str, TensorInfo], folder: Path, role: str, base: Mapping[str, TensorInfo] | None = None
) -> None:
    """Refuse a checkpoint whose tensors are quantized, whatever its config says.

    Tools such as ModelOpt write quantized weights without a word in `config.json`.

    Args:
        tensors (`Mapping[str, TensorInfo]`): The tensors.
        folder, role: As in [`refuse_quantized`].
        base (`Mapping[str, TensorInfo]`, *optional*): The base's tensors, if these are a fine-tune's. A weight of whole
            numbers where the base has floats, with no scale beside it, is no quantization but another tensor:
            `match_tensors` names it, with all others that do not fit.

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If weights are float8 or packed whole numbers, or have scales beside them.
    """
    found = [name for name in sorted(tensors) if _is_quantized(name, tensors)]
    found = found or [name for name in sorted(tensors) if _is_whole_weight(name, tensors, base or {})]
    if found:
        raise _quantized(folder, role, f"'{found[0]}' is {tensors[found[0]].dtype}; {len(found)} such tensors")


def _quantized(folder: Path, role: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"The {role} '{folder}' is quantised ({reason}): the difference would be one of rounded weights, not of "
        f"what was learned. Use the {role} in bf16, fp16 or fp32."
    )


def _quantization_in_config(folder: Path) -> str:
    """Return the method of quantization that the config names; an empty text if it names none."""
    quantization = read_config(folder).get("quantization_config")
    if quantization is None:
        return ""
    if isinstance(quantization, dict):
        return str(quantization.get("quant_method", "unknown method"))
    return str(quantization)


def _is_quantized(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Check whether a tensor is a quantized weight, or what one is stored with.

    Buffers of whole numbers (positions, masks) are no weights: they have no scale beside them.
    """
    info = tensors[name]
    if info.torch_dtype.is_floating_point:
        return info.torch_dtype.itemsize == 1 or _is_scale(name, tensors)
    if len(info.shape) < 2:
        return bool(_PACKED.fullmatch(name.rpartition(".")[2]))
    return bool(_PACKED.fullmatch(name.rpartition(".")[2])) or _has_scale(name, tensors)


def _is_whole_weight(name: str, tensors: Mapping[str, TensorInfo], base: Mapping[str, TensorInfo]) -> bool:
    """Check whether a tensor is a weight of whole numbers, and not where the base has floats."""
    info = tensors[name]
    if info.torch_dtype.is_floating_point or len(info.shape) < 2 or not name.endswith(".weight"):
        return False
    return name not in base or not base[name].torch_dtype.is_floating_point


def _is_scale(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Check whether a tensor is the scale of a weight beside it (`q_proj.weight_scale`, `q_proj.weight.absmax`)."""
    owner, _, attribute = name.rpartition(".")
    if _SCALE.fullmatch(attribute) and f"{owner}.weight" in tensors:
        return True
    return owner.endswith(".weight") and attribute in _BITSANDBYTES


def _has_scale(name: str, tensors: Mapping[str, TensorInfo]) -> bool:
    """Check whether the scale of a packed weight lies beside it: `experts.down_proj_scales` of `..._blocks`."""
    owner, _, attribute = name.rpartition(".")
    if attribute.endswith("_blocks"):
        return f"{owner}.{attribute.removesuffix('_blocks')}_scales" in tensors
    scales = ("scales", "scale", "zeros", "zero", "zero_point", "absmax", f"{attribute}_scale", f"{attribute}_scales")
    return any(f"{owner}.{scale}" in tensors for scale in scales)
