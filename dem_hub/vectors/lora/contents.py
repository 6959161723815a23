"""What an adapter must hold according to its config: a file that was cut or emptied is no smaller adapter.

PEFT warns of modules without factors and loads the rest, which changes nothing there. Such a model is wrong without
a sign of it, so the adapter is refused. The modules are those that PEFT would put a LoRA on.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.checkpoints.tensor_groups import EMBEDDING
from dem_hub.vectors.lora.writer import PEFT_PREFIX

# What wraps a model in training. PEFT writes none of these into an adapter.
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.base_model.model.")

_LAYER = re.compile(r".*?\.[^.]*\.(?P<number>\d+)\.")


def missing_modules(config: Mapping[str, Any], architecture: Architecture, names: Iterable[str]) -> list[str]:
    """Return one line for each module that an adapter's config names, and that its weights do not have.

    A stack of layers without a single LoRA is no fault: the text model of a model that reads images, too, is often
    trained alone.

    Args:
        config (`Mapping[str, Any]`): The adapter's config.
        architecture ([`Architecture`]): The architecture of the base.
        names (`Iterable[str]`): The names of the adapter's tensors.
    """
    bare = {name.removeprefix(PEFT_PREFIX) for name in names}
    if not bare:
        return ["its file has no tensors"]
    present = {name.rpartition(".lora_")[0] for name in bare if ".lora_" in name}
    stacks = {_stack(module) for module in present}
    absent = sorted({module.name for module in architecture.modules.values()} - present)
    faults = [
        f"'{module}' is in target_modules and has no lora_A and lora_B"
        for module in absent
        if _stack(module) in stacks and _is_targeted(module, config, architecture)
    ]
    unsaved = [name for name in config.get("modules_to_save") or () if not _is_saved(name, bare, architecture)]
    return [*faults, *(f"'{name}' is in modules_to_save and has no tensor" for name in unsaved)]


def wrapper_remedy(names: Iterable[str]) -> str:
    """Return what to do if the names of an adapter's tensors have a wrapper's prefix; else an empty text.

    Args:
        names (`Iterable[str]`): The names.
    """
    for name in names:
        for wrapper in _WRAPPERS:
            if name.startswith(wrapper) or name.removeprefix(PEFT_PREFIX).startswith(wrapper):
                return (
                    f"The names have the prefix '{wrapper}' of a wrapped model, as in '{name}'. Save the adapter "
                    "again from the unwrapped model (accelerator.unwrap_model), or rename its tensors to "
                    f"'{PEFT_PREFIX}...'."
                )
    return ""


def _stack(module: str) -> str:
    """Return the name of the stack of layers that a module is in, without numbers behind; itself if it is in none."""
    match = _LAYER.match(f".{module}")
    if match is None:
        return module
    return f".{module}"[: match.start("number")]


def _is_targeted(module: str, config: Mapping[str, Any], architecture: Architecture) -> bool:
    """Check whether PEFT would put a LoRA on a module, from lists of names alone.

    A regular expression of a stranger is not run here, and `all-linear` is left to PEFT, which writes the list out.
    """
    targets = config.get("target_modules")
    if not isinstance(targets, list) or config.get("layers_pattern"):
        return False
    excluded = config.get("exclude_modules") or []
    if isinstance(excluded, str):
        return False
    is_embedding = architecture.groups.get(architecture.keys[module]) == EMBEDDING
    # Both names of a tie are one tensor, which is refused where only one of them has a LoRA.
    if is_embedding and module in architecture.tied:
        return False
    if _ends_with_any(module, excluded) or _is_inside_any(module, config.get("modules_to_save") or []):
        return False
    return _ends_with_any(module, targets) and _is_in_layers(module, config.get("layers_to_transform"))


def _is_in_layers(module: str, layers: Any) -> bool:
    """Check whether a module is in one of the layers of `layers_to_transform`; `None` stands for all."""
    if layers is None or layers == []:
        return True
    match = _LAYER.match(module)
    if match is None:
        return False
    wanted = layers if isinstance(layers, list) else [layers]
    return int(match["number"]) in wanted


def _is_saved(suffix: str, names: set[str], architecture: Architecture) -> bool:
    """Check whether a saved module has a tensor, where the base has such a module at all."""
    owners = {name.rpartition(".")[0] for name in architecture.parameters}
    in_base = [owner for owner in owners if _ends_with_any(owner, [suffix])]
    if not in_base or any(owner in architecture.tied for owner in in_base):
        return True
    return any(f".{suffix}." in f".{name}" for name in names)


def _is_inside_any(module: str, names: Iterable[str]) -> bool:
    return any(f".{name}." in f".{module}." for name in names)


def _ends_with_any(module: str, suffixes: Iterable[str]) -> bool:
    return any(f".{module}".endswith(f".{suffix}") for suffix in suffixes)
