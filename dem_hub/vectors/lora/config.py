"""`adapter_config.json` of PEFT: read it, and refuse an adapter that is not a plain sum of deltas.

A LoRA adds scale * B @ A to a weight, so it is a distribution vector already. PEFT can do more than that: DoRA
rescales the weights of the base, PiSSA changes them before training. A setting that is not known to be harmless is
refused, whatever it is: a setting of a newer PEFT that was ignored would silently give another model.

A config that [`read_adapter_config`] returns belongs to an adapter whose delta is scale * B @ A for every module.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dem_hub.errors import AdapterError, CheckpointError, NotFoundError, VectorNotFoundError, refuse
from dem_hub.files.folders import RECIPE, STORE, kind_of
from dem_hub.files.json_types import fits, kind_text
from dem_hub.files.names import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS, VECTOR_CONFIG
from dem_hub.files.shown import shown
from dem_hub.files.strict_json import read_json

# Settings that change where or how a LoRA was trained, but not that its delta is scale * B @ A.
_HARMLESS = frozenset([
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying",
    "eva_config", "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core",
    "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r", "rank_pattern", "revision",
    "runtime_config", "target_modules", "target_parameters", "task_type", "use_rslora", "velora_config",
])  # fmt: skip

# Settings that do more than add scale * B @ A, and why each is refused.
_REASONS = {
    "use_dora": "DoRA rescales the base's weights themselves",
    "use_qalora": "QALoRA pools the input, which no change of a weight does",
    "lora_bias": "a bias in lora_B has no tensor of the base to go to",
    "trainable_token_indices": "trainable tokens are not stored as B @ A",
    "layer_replication": "it has more layers than the base",
    "alora_invocation_tokens": "an activated LoRA applies to some tokens only",
}

# What the settings that are read here must be. PEFT checks none of them, and a text in the place of a list of names
# would be taken letter by letter.
_TYPES: dict[str, Any] = {
    "alpha_pattern": Mapping[str, float] | None,
    "base_model_name_or_path": str | None,
    "ensure_weight_tying": bool | None,
    "exclude_modules": str | list[str] | None,
    "fan_in_fan_out": bool | None,
    "init_lora_weights": bool | str | None,
    "layers_pattern": str | list[str] | None,
    "layers_to_transform": int | list[int] | None,
    "lora_alpha": float,
    "modules_to_save": list[str] | None,
    "peft_type": str | None,
    "r": int,
    "rank_pattern": Mapping[str, int] | None,
    "revision": str | None,
    "target_modules": str | list[str] | None,
    "target_parameters": list[str] | None,
    "use_rslora": bool | None,
}

# Values of `init_lora_weights` that change the base's weights before training. PEFT appends options to some
# ("pissa_niter_4").
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

# Values of it that choose factors and leave the base alone.
_KNOWN_INITIALIZATIONS = ("gaussian", "orthogonal", "eva", "mica", "true", "false")

_EXTRACT_INSTEAD = "Merge it into its base, save that, and extract the vector: dem-hub extract BASE MERGED -o DIR"


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read the config of an adapter, and check that the adapter is a plain sum of deltas with its weights in
    safetensors.

    Args:
        folder (`Path`): Folder of the adapter.

    Returns:
        `dict[str, Any]`: The content of `adapter_config.json`.

    Raises:
        `VectorNotFoundError`: If the folder has no `adapter_config.json`.
        `NotFoundError`: If the folder has no weights.
        `CheckpointError`: If the weights are pickled.
        `AdapterError`: If the adapter does more than add scale * B @ A. All reasons are listed.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        raise _no_adapter(folder)
    if not (folder / ADAPTER_WEIGHTS).is_file():
        raise _no_weights(folder)
    config = read_json(path)
    faults = _wrong_types(config) or _faults(config)
    if faults:
        refuse(AdapterError, f"The adapter '{folder}' is not a plain sum of deltas.", faults, _EXTRACT_INSTEAD)
    return config


def _no_adapter(folder: Path) -> VectorNotFoundError:
    """Return the error for a folder that is neither a vector nor an adapter.

    It says what the folder is, if that is known.
    """
    kind = kind_of(folder)
    if kind == STORE:
        return VectorNotFoundError(
            f"'{folder}' is {kind}, not a distribution vector. Name one of its vectors: {folder}//NAME."
        )
    if kind == RECIPE:
        return VectorNotFoundError(
            f"'{folder}' is {kind}, not a distribution vector. It names a base and vectors; name those, or load "
            "it alone."
        )
    return VectorNotFoundError(
        f"'{folder}' has neither {VECTOR_CONFIG} nor {ADAPTER_CONFIG}: it is not a distribution vector. If it is "
        "a fine-tune, take its "
        "vector first: dem-hub extract BASE FINETUNED -o DIR, in Python DistributionVector.extract(base, finetuned)."
    )


def _no_weights(folder: Path) -> CheckpointError | NotFoundError:
    if (folder / ADAPTER_PICKLE).is_file():
        return CheckpointError(
            f"'{folder}' has pickled weights only ({ADAPTER_PICKLE}), which can run code when they are read. "
            "Convert them: "
            "PeftModel.from_pretrained(base, folder).save_pretrained(new_folder) writes safetensors."
        )
    return NotFoundError(f"'{folder}' has no {ADAPTER_WEIGHTS}. Fetch it again.")


def _wrong_types(config: Mapping[str, Any]) -> list[str]:
    """Return one line for each setting whose value is of another type than PEFT's."""
    faults = []
    for name, kind in _TYPES.items():
        if name in config and not fits(kind, config[name]):
            faults.append(f"{name} is {shown(config[name])}, which is not {kind_text(kind)}")
    return faults


def _faults(config: Mapping[str, Any]) -> list[str]:
    """Return one line for each setting by which the adapter is not a plain sum of deltas."""
    faults = []
    if config.get("peft_type") != "LORA":
        faults.append(f"peft_type is '{config.get('peft_type')}', and only LORA is a sum of B @ A")
    for name, value in sorted(config.items()):
        is_off = value in (None, False, "", [], {})
        if name not in _HARMLESS and not is_off:
            reason = _REASONS.get(name, "not known to leave the delta a plain sum of B @ A")
            faults.append(f"{name} is {shown(value)}: {reason}")
    initialization = config.get("init_lora_weights")
    if isinstance(initialization, str) and initialization.startswith(_CHANGED_BASE):
        faults.append(
            f"init_lora_weights is '{initialization}', which changes the base: convert the adapter "
            "(path_initial_model_for_weight_conversion in PEFT)"
        )
    elif isinstance(initialization, str) and initialization not in _KNOWN_INITIALIZATIONS:
        faults.append(f"init_lora_weights is '{initialization}', which is not known to leave the base as it is")
    return faults
