"""PEFT LoRA adapters as distribution vectors, both ways: read exactly as they are, and written for what is low rank.

A LoRA's delta is scale * B @ A, a plain sum, so that it is a vector already and no SVD is needed. Whatever PEFT can do that is not
a plain sum over the base's weights (DoRA, PiSSA's changed base, LoRA on a tied embedding) is refused with the reason.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.checkpoints.lazy import LazyTensor, Rows, Transposed
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.codecs.component import Component, StoredDelta
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.whole import Full
from dem_hub.errors import AdapterError, CheckpointError, NotFoundError, VectorNotFoundError, refuse
from dem_hub.files.folders import RECIPE, STORE, kind_of
from dem_hub.files.names import ADAPTER_CONFIG, ADAPTER_PICKLE, ADAPTER_WEIGHTS
from dem_hub.files.strict_json import parse_json
from dem_hub.vectors.lora.experts import expert_factors, find_fused
from dem_hub.vectors.lora.writer import PEFT_PREFIX

# Settings that change where or how a LoRA was trained, but not that its delta is scale * B @ A.
_HARMLESS = frozenset([
    "alpha_pattern", "auto_mapping", "base_model_name_or_path", "bias", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_alpha", "lora_dropout", "lora_ga_config", "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size",
    "r", "rank_pattern", "revision", "runtime_config", "target_modules", "target_parameters", "task_type", "use_rslora", "velora_config",
])  # fmt: skip
_REASONS = {
    "use_dora": "DoRA rescales the base's weights themselves",
    "use_qalora": "QALoRA pools the input, which no change of a weight does",
    "lora_bias": "a bias in lora_B has no tensor of the base to go to",
    "trainable_token_indices": "trainable tokens are not stored as B @ A",
    "layer_replication": "it has more layers than the base",
    "alora_invocation_tokens": "an activated LoRA applies to some tokens only",
}
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # initialisations that change the base's weights
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?")


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter's config, once it is known to be a plain sum.

    Raises:
        `VectorNotFoundError`: no adapter here.
        `NotFoundError`: an adapter whose weights are not here.
        `CheckpointError`: its weights are pickled.
        `AdapterError`: what it does is not a plain sum of deltas; lists every reason.
    """
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        kind = kind_of(folder)
        if kind in (RECIPE, STORE):
            way = (
                f"Name one of its vectors: {folder}//NAME."
                if kind == STORE
                else "It names a base and vectors; name those, or load it alone."
            )
            raise VectorNotFoundError(f"'{folder}' is {kind}, not a distribution vector. {way}")
        raise VectorNotFoundError(
            f"'{folder}' has neither vector_config.json nor {ADAPTER_CONFIG}: it is not a distribution vector. If it is a fine-tune, take its "
            "vector first: dem-hub extract BASE FINETUNED -o DIR, in Python DistributionVector.extract(base, finetuned)."
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        if (folder / ADAPTER_PICKLE).is_file():
            raise CheckpointError(
                f"'{folder}' has pickled weights only (adapter_model.bin), which can run code when they are read. Convert them: "
                "PeftModel.from_pretrained(base, folder).save_pretrained(new_folder) writes safetensors."
            )
        raise NotFoundError(f"'{folder}' has no {ADAPTER_WEIGHTS}. Fetch it again.")
    config = parse_json(path.read_bytes(), str(path))
    faults = []
    if config.get("peft_type") != "LORA":
        faults.append(f"peft_type is '{config.get('peft_type')}', and only LORA is a sum of B @ A")
    for key, value in sorted(config.items()):
        if key not in _HARMLESS and value not in (None, False, "", [], {}):
            faults.append(
                f"{key} is {value!r}: " + _REASONS.get(key, "not known to leave the delta a plain sum of B @ A")
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.startswith(_CHANGED_BASE):
        faults.append(
            f"init_lora_weights is '{start}', which changes the base: convert it (path_initial_model_for_weight_conversion in PEFT)"
        )
    if faults:
        refuse(AdapterError, f"The adapter '{folder}' is not a plain sum of deltas.", faults, _EXTRACT_INSTEAD)
    return config


_EXTRACT_INSTEAD = "Merge it into its base, save that, and extract the vector: dem-hub extract BASE MERGED -o DIR"


def read_adapter(
    folder: Path, config: Mapping[str, Any], base: Checkpoint, architecture: Architecture
) -> dict[str, StoredDelta]:
    """The deltas of an adapter, unread, by the base's checkpoint keys.

    Args:
        folder (`Path`): the adapter's.
        config (`Mapping[str, Any]`): from [`read_adapter_config`].
        base (`Checkpoint`): the base it goes on.
        architecture (`Architecture`): of that base.

    Raises:
        `AdapterError`: tensors that the base has no place for, or of the wrong shape; lists all of them.
    """
    weights = Checkpoint(folder, index=ADAPTER_WEIGHTS)
    factors: dict[str, dict[str, LazyTensor]] = {}
    deltas: dict[str, StoredDelta] = {}
    faults: list[str] = []
    for name in sorted(weights):
        match = _LORA.fullmatch(name.removeprefix(PEFT_PREFIX))
        if match is None:
            _add_whole(name, weights, base, architecture, config, deltas, faults)
        elif not _is_known(match["module"], architecture, config):
            faults.append(
                f"'{name}': the base has no single weight for a module '{match['module']}' ({architecture.name})"
            )
        else:
            factors.setdefault(match["module"], {})[match["factor"]] = weights.lazy(name)
    for module, pair in sorted(factors.items()):
        for key, component in _components(module, pair, base, architecture, config, faults):
            rest = deltas.get(key, StoredDelta())
            deltas[key] = StoredDelta((component, *rest.components), rest.rows)
    if faults:
        refuse(
            AdapterError,
            f"The adapter '{folder}' does not fit the base '{base.path}'.",
            faults,
            "Use the base it was trained on.",
        )
    return deltas


def _components(
    module: str,
    pair: Mapping[str, LazyTensor],
    base: Checkpoint,
    architecture: Architecture,
    config: Mapping[str, Any],
    faults: list[str],
) -> Iterator[tuple[str, Component]]:
    """B and A of one module as `left` and `right` of each tensor that they change, in the orientation of the checkpoint, or faults."""
    letter = next(iter(pair))
    if not _is_known(module, architecture, config):
        faults.append(
            f"'{PEFT_PREFIX}{module}.lora_{letter}.weight': the base has no single weight for a module '{module}' ({architecture.name})"
        )
        return
    if set(pair) != {"A", "B"}:
        faults.append(f"'{module}' has only lora_{letter}")
        return
    if _is_one_sided(module, architecture, config):
        faults.append(
            f"'{module}' is one tensor with another embedding, and PEFT changes one side alone: not a change of the tensor"
        )
        return
    first, second = (pair[letter].get_shape() for letter in "AB")
    if len(first) != 2 or len(second) != 2:
        faults.append(f"'{module}' has factors of shape {first} and {second}; only matrices are supported")
        return
    parameter, targets = _targets(module, pair["A"], pair["B"], base, architecture, config)
    if not targets:
        faults.append(
            f"'{module}' has factors of shape {first} and {second}, which are for none of its experts' parameters, or for several"
        )
    for key, left, right in targets:
        shape, rank = (left.get_shape()[0], right.get_shape()[1]), left.get_shape()[1]
        if shape != base[key].shape or rank != right.get_shape()[0]:
            faults.append(
                f"'{key}' is {list(base[key].shape)} in the base, and the LoRA's B @ A is {list(shape)} (A {first}, B {second})"
            )
            continue
        alpha = _pattern(config.get("alpha_pattern") or {}, parameter, config.get("lora_alpha", 8))
        scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
        yield key, Component(LowRank(), {"left": left, "right": right}, shape, scale)


def _is_known(module: str, architecture: Architecture, config: Mapping[str, Any]) -> bool:
    """Whether something in the base can be what A and B of a module are for."""
    owner = _owner(module)
    known = module in architecture.keys or _is_targeted(f"{owner}.weight", architecture, config)
    return known or any(name.rpartition(".")[0] == owner for name in architecture.fused)


def _is_targeted(parameter: str, architecture: Architecture, config: Mapping[str, Any]) -> bool:
    """Whether a parameter of a module that is no linear layer, such as the router of experts, has a LoRA."""
    return parameter in architecture.parameters and any(
        f".{parameter}".endswith(f".{one}") for one in config.get("target_parameters") or ()
    )


def _owner(module: str) -> str:
    """A module's own name: PEFT nests the LoRAs of several of its parameters."""
    return module.replace(".base_layer", "")


def _targets(
    module: str,
    first: LazyTensor,
    second: LazyTensor,
    base: Checkpoint,
    architecture: Architecture,
    config: Mapping[str, Any],
) -> tuple[str, list[tuple[str, LazyTensor, LazyTensor]]]:
    """What patterns of the config call the target of A and B, and the keys that they change, each with its left and right factor."""
    key = architecture.keys.get(module)
    if key is not None and architecture.modules[key].transposed:
        return module, [(key, Transposed(first), Transposed(second))]
    if key is not None:
        return module, [(key, second, first)]
    weight = f"{_owner(module)}.weight"
    if _is_targeted(weight, architecture, config):
        return weight, [(architecture.parameters[weight], second, first)]
    fused = find_fused(_owner(module), architecture.fused, base, first.get_shape(), second.get_shape())
    return (
        (fused, list(expert_factors(architecture.fused[fused], base, first, second)))
        if fused is not None
        else (module, [])
    )


def _is_one_sided(module: str, architecture: Architecture, config: Mapping[str, Any]) -> bool:
    """Whether PEFT changes one of two embeddings that are a single tensor on disk."""
    return module in architecture.tied and not config.get("ensure_weight_tying")


def saves_one_side(module: str, architecture: Architecture, config: Mapping[str, Any]) -> bool:
    """Whether an adapter keeps a copy (`modules_to_save`) of one of two embeddings that are a single tensor on disk."""
    saved = config.get("modules_to_save") or []
    return _is_one_sided(module, architecture, config) and any(f".{module}".endswith(f".{entry}") for entry in saved)


def _pattern(patterns: Mapping[str, float], module: str, default: float) -> float:
    """PEFT's rule: the first pattern that matches the module's name or the end of it."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _add_whole(
    name: str,
    weights: Checkpoint,
    base: Checkpoint,
    architecture: Architecture,
    config: Mapping[str, Any],
    deltas: dict[str, StoredDelta],
    faults: list[str],
) -> None:
    """A tensor that PEFT keeps whole: a saved module, a trained bias, an embedding beside its LoRA."""
    parameter = name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")
    key = architecture.parameters.get(parameter)
    if key is None or key not in base:
        if architecture.tied and _is_copy(name, weights):
            return  # the output embedding written out beside the input embedding it is tied to
        faults.append(
            f"'{name}' {list(weights[name].shape)}: the base has no tensor for '{parameter}' ({architecture.name})"
        )
        return
    stored, rows = weights[name].shape, base[key].shape
    grown = len(rows) > 0 and len(stored) == len(rows) and stored[1:] == rows[1:] and stored[0] > rows[0]
    if stored != rows and not grown:
        faults.append(f"'{key}' is {list(stored)} in the adapter and {list(rows)} in the base")
        return
    if not grown and torch.equal(weights.read(name).to(base[key].torch_dtype), base.read(key)):
        return  # saved, but not trained
    module = parameter.rpartition(".")[0]
    if saves_one_side(module, architecture, config):
        faults.append(
            f"'{module}' is one tensor with another embedding, and PEFT changed one side alone (modules_to_save)"
        )
        return
    values = weights.lazy(name)
    deltas[key] = StoredDelta(
        (Component(Full(), {"full": values}, stored),), Rows(values, rows[0], stored[0]) if grown else None
    )


def _is_copy(name: str, weights: Checkpoint) -> bool:
    info = weights[name]
    same = [
        other
        for other in weights
        if other != name and weights[other].shape == info.shape and weights[other].dtype == info.dtype
    ]
    return any(torch.equal(weights.read(other), weights.read(name)) for other in same)
