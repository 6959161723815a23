"""The names of an adapter's tensors: what each is for, and what it is called in the model of today.

Older versions of transformers gave modules other names. The models that read images, above all, have their language
model elsewhere since (`language_model.model.layers` became `model.language_model.layers`). A model of those days had the
names that its checkpoint has to this day, so transformers' own loader tells the new name, as it does for a checkpoint.
"""

import re
from collections.abc import Iterable, Mapping

from dem_hub.checkpoints.architecture import Architecture
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.key_names import match_keys
from dem_hub.checkpoints.model_building import build
from dem_hub.vectors.lora.writer import PEFT_PREFIX

# The name of a factor, without PEFT's prefix.
FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.weight)?")


def parameter_of(name: str) -> str:
    """Return the parameter in the model that a tensor of an adapter changes."""
    bare = name.removeprefix(PEFT_PREFIX)
    match = FACTOR.fullmatch(bare)
    if match is not None:
        return f"{match['module']}.weight"
    return whole_parameter(bare)


def whole_parameter(name: str) -> str:
    """Return the parameter in the model that a tensor of an adapter is, if PEFT keeps it whole."""
    return name.removeprefix(PEFT_PREFIX).replace(".base_layer.", ".").replace(".modules_to_save.", ".")


def ends_with_any(name: str, suffixes: list[str] | None) -> bool:
    """Check whether a dotted name ends with one of several dotted names, as PEFT matches `target_modules`."""
    return any(f".{name}".endswith(f".{suffix}") for suffix in suffixes or ())


def rename(names: Iterable[str], renamed: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Rename the tensors of an adapter.

    Args:
        names (`Iterable[str]`): Their names in the file.
        renamed (`Mapping[str, str]`): What [`current_parameters`] returned.

    Returns:
        `tuple[dict[str, str], dict[str, str]]`: The name of each tensor without PEFT's prefix, by its name in the file;
            and the old name of each module with a LoRA that has another one today, by that one.
    """
    bare_names = {}
    old_modules = {}
    for name in sorted(names):
        bare = name.removeprefix(PEFT_PREFIX)
        now = renamed.get(parameter_of(name))
        match = FACTOR.fullmatch(bare)
        if now is not None and match is not None:
            module = now.removesuffix(".weight")
            old_modules[module] = match["module"]
            bare = module + bare.removeprefix(match["module"])
        elif now is not None:
            bare = now
        bare_names[name] = bare
    return bare_names, old_modules


def current_parameters(parameters: Iterable[str], base: Base, architecture: Architecture) -> dict[str, str]:
    """Return the name that each of some parameters has in the model today, if it had another one once.

    Args:
        parameters (`Iterable[str]`): Names of parameters in the model that an adapter was trained on.
        base ([`Base`]): The base.
        architecture ([`Architecture`]): What it is loaded as.
    """
    known = {*architecture.parameters, *architecture.expert_keys}
    unknown = [name for name in parameters if name not in known]
    if not unknown:
        return {}
    matched = match_keys(build(base.folder, architecture.name), unknown)
    return {name: now for name, now in matched.names.items() if name != now and now in architecture.parameters}
