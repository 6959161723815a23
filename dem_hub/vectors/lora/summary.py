"""The modules of an adapter with rank and norm, to look at: from its own files, without the base.

Where a module goes in a checkpoint needs the base, which is not opened here. So names are the adapter's own, and what
only the base can tell (the rank of a LoRA on fused experts, what a saved module adds) is left out.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.files.names import ADAPTER_WEIGHTS
from dem_hub.vectors.lora.names import FACTOR
from dem_hub.vectors.lora.patterns import Patterns
from dem_hub.vectors.lora.writer import PEFT_PREFIX


@dataclass(frozen=True)
class AdaptedModule:
    """A module of an adapter: the bytes of its tensors, its rank, and the norm of scale * B @ A.

    The rank is `None` if the module is kept whole or the base must tell. The norm is `None` then, too, and where the
    weights are still on the Hub.
    """

    nbytes: int
    rank: int | None = None
    norm: float | None = None


def adapted_modules(folder: Path, config: Mapping[str, Any], *, with_norms: bool) -> dict[str, AdaptedModule]:
    """Return the modules of an adapter by their names.

    Args:
        folder (`Path`): Folder of the adapter.
        config (`Mapping[str, Any]`): Its config, from [`read_adapter_config`].
        with_norms (`bool`): Whether to read the weights for the norms. If not, the headers are enough.
    """
    weights = Checkpoint(folder, index=ADAPTER_WEIGHTS)
    names: dict[str, dict[str, str]] = {}  # the names of A and B of each module, or of one whole tensor
    for name in weights:
        bare = name.removeprefix(PEFT_PREFIX)
        match = FACTOR.fullmatch(bare)
        if match is None:
            names[bare] = {"whole": name}
        else:
            names.setdefault(match["module"], {})[match["factor"]] = name
    alphas = Patterns(config.get("alpha_pattern") or {}, "alpha_pattern")
    modules = {}
    for module, tensors in names.items():
        nbytes = sum(weights[name].nbytes for name in tensors.values())
        modules[module] = AdaptedModule(nbytes)
        if not _is_product(module, tensors, weights, config):
            continue
        rank = weights[tensors["A"]].shape[0]
        norm = None
        if with_norms:
            alpha = alphas.first(module, config.get("lora_alpha", 8))
            scale = alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank
            norm = abs(scale) * _norm(weights.read(tensors["B"]), weights.read(tensors["A"]))
        modules[module] = AdaptedModule(nbytes, rank, norm)
    return modules


def _is_product(module: str, tensors: Mapping[str, str], weights: Checkpoint, config: Mapping[str, Any]) -> bool:
    """Return whether B @ A of a module is one matrix, whatever the base is."""
    if set(tensors) != {"A", "B"} or ".base_layer" in module:
        return False
    for parameter in config.get("target_parameters") or ():
        owner = parameter.rpartition(".")[0]
        if f".{module}".endswith(f".{owner}"):
            return False
    a, b = weights[tensors["A"]].shape, weights[tensors["B"]].shape
    return len(a) == len(b) == 2 and a[0] == b[1] and 0 not in (*a, *b)


def _norm(b: torch.Tensor, a: torch.Tensor) -> float:
    """Return the Frobenius norm of B @ A, in float64, without multiplying it out."""
    b = b.to("cpu", torch.float64)
    a = a.to("cpu", torch.float64)
    square = ((b.T @ b) * (a @ a.T)).sum()
    return math.sqrt(max(float(square), 0.0))
