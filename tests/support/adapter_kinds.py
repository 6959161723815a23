"""The LoRAs that a model can have: one for each kind of its modules, as the options of PEFT's `LoraConfig`."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

# Parts of the names of what sees an image in a model that reads text too.
_VISION = ("vision", "visual", "multi_modal")
_CLASSES = {"other embeddings": nn.Embedding, "convolutions": (nn.Conv1d, nn.Conv2d, nn.Conv3d)}
_ATTENTION = ("Attention", "DeltaNet", "Mixer")


def adapter_kinds(model: Any) -> dict[str, dict[str, Any]]:
    """Return the options of a LoRA on each kind of module that a model has.

    Every module with a weight of its own is of one kind. Parameters that belong to no such module, such as the sinks
    of an attention, take no LoRA.
    """
    modules = dict(model.named_modules())
    names: dict[str, list[str]] = {}
    for name in modules:
        kind = _kind(name, modules, model)
        if kind:
            names.setdefault(kind, []).append(name)
    some = names["attention"][:1]
    kinds: dict[str, dict[str, Any]] = {"all linear": {"target_modules": "all-linear"}}
    for kind in ("attention", "mlp", "vision", "convolutions", "other embeddings"):
        if kind in names:
            kinds[kind] = {"target_modules": names[kind]}
    for kind, dimensions in (("experts", 3), ("router", 2)):
        if kind in names:
            parameters = [name for owner in names[kind] for name in _parameters(owner, modules[owner], dimensions)]
            kinds[kind] = {"target_modules": [], "target_parameters": parameters}
    kinds["saved norms"] = {"target_modules": some, "modules_to_save": names["norms"]}
    if any(name.endswith("bias") for name, _ in model.named_parameters()):
        kinds["biases"] = {"target_modules": some, "bias": "all"}
    ends = names.get("input embedding", []) + names.get("output embedding", [])
    if ends:
        kinds["input embedding"] = {"target_modules": ends[:1]}
        kinds["output embedding"] = {"target_modules": ends[1:]}
        kinds["both embeddings"] = {"target_modules": ends, "ensure_weight_tying": True}
        kinds["saved embeddings"] = {"target_modules": some, "modules_to_save": ends}
        kinds["tied saved embeddings"] = kinds["saved embeddings"] | {"ensure_weight_tying": True}
    return kinds


def _kind(name: str, modules: Mapping[str, nn.Module], model: Any) -> str:
    """Return the kind of a module; an empty text if it has no weight of its own."""
    from transformers.pytorch_utils import Conv1D

    module = modules[name]
    class_name = type(module).__name__
    parts = name.split(".")
    owners = [type(modules[".".join(parts[:end])]).__name__ for end in range(1, len(parts))]
    if module is model.get_input_embeddings() and isinstance(module, nn.Embedding):
        return "input embedding"
    if module is model.get_output_embeddings():
        return "output embedding"
    for kind, classes in _CLASSES.items():
        if isinstance(module, classes):
            return kind
    for kind, word in (("router", "Router"), ("experts", "Experts"), ("norms", "Norm")):
        if word in class_name and list(module.parameters(recurse=False)):
            return kind
    if not isinstance(module, nn.Linear | Conv1D):
        return ""
    if any(word in name for word in _VISION):
        return "vision"
    return "attention" if any(word in owner for owner in owners for word in _ATTENTION) else "mlp"


def _parameters(name: str, module: nn.Module, dimensions: int) -> list[str]:
    """Return the names of a module's own parameters with so many dimensions."""
    own = module.named_parameters(recurse=False)
    return [f"{name}.{parameter}" for parameter, values in own if values.dim() == dimensions]


def train(adapted: Any) -> None:
    """Change all that PEFT would train."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
