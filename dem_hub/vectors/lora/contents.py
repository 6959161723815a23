"""What an adapter must hold according to its config: a file that was cut or emptied is no smaller adapter.

PEFT warns of modules without factors and loads the rest, which changes nothing there. Such a model is wrong without a
sign of it, so the adapter is refused. The modules are those that PEFT would put a LoRA on. Each fault says what to do
about it.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, NoReturn

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.checkpoints.tensor_groups import EMBEDDING
from dem_hub.errors import AdapterError, refuse
from dem_hub.vectors.lora.patterns import full_match
from dem_hub.vectors.lora.writer import PEFT_PREFIX

# What wraps a model in training. PEFT writes none of these into an adapter.
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.base_model.model.")

_LAYER = re.compile(r".*?\.[^.]*\.(?P<number>\d+)\.")
# PEFT takes the names of `layers_pattern` as regular expressions. They are names in all adapters but made-up ones.
_NAME = re.compile(r"\w+")
# The value of `target_modules` that stands for every linear layer but the output. PEFT writes the names out.
_ALL_LINEAR = "all-linear"
_CLASSIFIER_HEADS = ("score", "classifier")

# What to do about a file that is not what PEFT wrote.
DAMAGED = "Fetch it again, or save it again."
# What to do about one that is not for this base.
OTHER_BASE = (
    "Use the base it was trained on. If this is that base, merge the adapter into it with PEFT, and extract the vector "
    "of the result."
)
# What to do about a change of one of two tied embeddings alone.
UNTIE = "Train both ends with ensure_weight_tying=True, or on a base whose embeddings are untied."
_MEANT = f"{DAMAGED} If it is meant to be so, say it in adapter_config.json:"
_FEWER_TARGETS = f"{_MEANT} target_modules and layers_to_transform name what there is."
_FEWER_SAVED = f"{_MEANT} modules_to_save names what there is."


class Fault(NamedTuple):
    """What is wrong with an adapter, on one line, and what the user can do about it."""

    text: str
    remedy: str


def refuse_adapter(summary: str, faults: Sequence[Fault]) -> NoReturn:
    """Raise an error that lists all faults, and each remedy once.

    Raises:
        `AdapterError`: Always.
    """
    remedies = dict.fromkeys(fault.remedy for fault in faults)
    refuse(AdapterError, summary, [fault.text for fault in faults], "\n".join(remedies))


@dataclass(frozen=True)
class Contents:
    """What an adapter lacks: `faults`, for which it is refused, and `notes`, which may be meant to be so."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_contents(
    config: Mapping[str, Any], architecture: Architecture, names: Iterable[str], *, has_old_names: bool = False
) -> Contents:
    """Find each module that an adapter's config names, and that its weights do not have.

    A stack of layers without a single LoRA is noted and is no fault: the text model of a model that reads images, too,
    is often trained alone. Then modules outside of the layers are no fault, either.

    Args:
        config (`Mapping[str, Any]`): The adapter's config.
        architecture ([`Architecture`]): The architecture of the base.
        names (`Iterable[str]`): The names of the adapter's tensors in the model of today.
        has_old_names (`bool`, *optional*, defaults to `False`): Whether the config has the names of an older version of
            transformers, which are those of the checkpoint.
    """
    bare = {name.removeprefix(PEFT_PREFIX) for name in names}
    if not bare:
        return Contents([Fault("its file has no tensors", DAMAGED)])
    contents = Contents()
    present = {name.rpartition(".lora_")[0] for name in bare if ".lora_" in name}
    trained = {_stack(module) for module in present}
    try:
        is_targeted = _targets(config, architecture, has_old_names=has_old_names)
        absent = sorted({module.name for module in architecture.modules.values() if is_targeted(module.name)} - present)
    except AdapterError as error:
        contents.notes.append(f"its modules cannot be checked: {error}")
        contents.notes.extend(_uneven_stacks(config, architecture, present))
        absent = []
    untrained = sorted({_stack(module) for module in absent} - trained - {""})
    for stack in untrained:
        contents.notes.append(f"'{stack}' is in target_modules, and none of its layers has a LoRA")
    for module in absent:
        stack = _stack(module)
        if stack in trained or (not stack and not untrained):
            text = f"'{module}' is in target_modules and has no lora_A and lora_B"
            contents.faults.append(Fault(text, _FEWER_TARGETS))
    for name in config.get("modules_to_save") or ():
        if not _is_saved(name, bare, architecture):
            contents.faults.append(Fault(f"'{name}' is in modules_to_save and has no tensor", _FEWER_SAVED))
    return contents


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
    """Return the name of the stack of layers that a module is in, without numbers behind; empty if it is in none."""
    match = _LAYER.match(f".{module}")
    if match is None:
        return ""
    return module[: match.start("number") - 2]


def _uneven_stacks(config: Mapping[str, Any], architecture: Architecture, present: Iterable[str]) -> Iterator[str]:
    """Yield a line for each stack of which some layers have a LoRA and others, that may have one, have none."""
    if config.get("layers_to_transform"):
        return
    layers = _layers(module.name for module in architecture.modules.values())
    for stack, trained in sorted(_layers(present).items()):
        without = sorted(layers.get(stack, set()) - trained)
        if without:
            yield f"layers {', '.join(map(str, without))} of '{stack}' have no LoRA, and others do"


def _layers(modules: Iterable[str]) -> dict[str, set[int]]:
    """Return the numbers of the layers of each stack that modules are in."""
    layers: dict[str, set[int]] = {}
    for module in modules:
        match = _LAYER.match(f".{module}")
        if match is not None:
            layers.setdefault(_stack(module), set()).add(int(match["number"]))
    return layers


def _targets(
    config: Mapping[str, Any], architecture: Architecture, *, has_old_names: bool = False
) -> Callable[[str], bool]:
    """Return a function that tells whether PEFT would put a LoRA on a module.

    Raises:
        [`~dem_hub.errors.AdapterError`]: If a pattern of the config cannot be matched as PEFT does, in linear time.
    """
    is_chosen = _chosen(config, architecture)
    excluded = config.get("exclude_modules") or []
    is_excluded = _one_of(excluded) if isinstance(excluded, list) else full_match(excluded, "exclude_modules")
    saved = config.get("modules_to_save") or []

    def is_targeted(module: str) -> bool:
        key = architecture.keys[module]
        # Both names of a tie are one tensor, which is refused where only one of them has a LoRA.
        if architecture.groups.get(key) == EMBEDDING and module in architecture.tied:
            return False
        name = key.removesuffix(".weight") if has_old_names else module
        return is_chosen(name) and not is_excluded(name) and not _is_inside_any(name, saved)

    return is_targeted


def _chosen(config: Mapping[str, Any], architecture: Architecture) -> Callable[[str], bool]:
    """Return a function that tells whether `target_modules` has a module."""
    targets = config.get("target_modules") or []
    if isinstance(targets, list):
        is_named = _one_of(targets)
        is_in_layers = _in_layers(config)
        # PEFT asks for the layer of a module only if its whole name is not in the list.
        whole = frozenset(targets)
        return lambda module: module in whole or (is_named(module) and is_in_layers(module))
    if targets.lower() != _ALL_LINEAR:
        return full_match(targets, "target_modules")
    heads = _CLASSIFIER_HEADS if config.get("task_type") == "SEQ_CLS" else ()
    linear: set[str] = set()
    for key, module in architecture.modules.items():
        is_output = architecture.groups.get(key) == EMBEDDING or module.name in heads
        if module.kind in ("linear", "conv1d") and not is_output:
            linear |= {module.name, key.removesuffix(".weight")}
    return lambda module: module in linear


def _in_layers(config: Mapping[str, Any]) -> Callable[[str], bool]:
    """Return a function that tells whether a module is in one of `layers_to_transform`; `None` stands for all."""
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return lambda _: True
    wanted = layers if isinstance(layers, list) else [layers]
    names = config.get("layers_pattern") or []
    names = names if isinstance(names, list) else [names]
    for name in names:
        if not _NAME.fullmatch(name):
            raise AdapterError(f"layers_pattern has {name!r}, which is more than a name.")
    patterns = [re.compile(rf"(?:^|.*?\.){name}\.(?P<number>\d+)\.") for name in names] or [_LAYER]

    def is_in_layers(module: str) -> bool:
        for pattern in patterns:
            match = pattern.match(module)
            if match is not None:
                return int(match["number"]) in wanted
        return False

    return is_in_layers


def _is_saved(suffix: str, names: set[str], architecture: Architecture) -> bool:
    """Check whether a saved module has a tensor, where the base has such a module at all."""
    is_it = _one_of([suffix])
    in_base = {owner for owner in (name.rpartition(".")[0] for name in architecture.parameters) if is_it(owner)}
    if not in_base or any(owner in architecture.tied for owner in in_base):
        return True
    return any(f".{suffix}." in f".{name}" for name in names)


def _is_inside_any(module: str, names: Iterable[str]) -> bool:
    return any(f".{name}." in f".{module}." for name in names)


def _one_of(names: Collection[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a dotted name, or its end after a dot, is one of several names."""
    known = frozenset(names)

    def is_one(name: str) -> bool:
        parts = name.split(".")
        return any(".".join(parts[start:]) in known for start in range(len(parts)))

    return is_one
