"""Factors written as a PEFT adapter, tensor by tensor, whose scale is 1: what it adds is B @ A."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from dem_hub.checkpoints.architecture import Architecture, Module
from dem_hub.checkpoints.writer import UNLIMITED, TensorWriter
from dem_hub.files.atomic import write_text
from dem_hub.files.names import ADAPTER_CONFIG, ADAPTER_WEIGHTS, SAFETENSORS
from dem_hub.files.strict_json import dump_json
from dem_hub.hub.references import BaseRecord

# PEFT wraps a model twice (`PeftModel.base_model.model`), so the names of its parameters begin with this.
PEFT_PREFIX = "base_model.model."


class AdapterWriter:
    """The two files of an adapter in a folder; none where nothing was written."""

    def __init__(self, folder: Path, architecture: Architecture | None) -> None:
        self._folder, self._architecture = folder, architecture
        self._factors = TensorWriter(folder, ADAPTER_WEIGHTS.removesuffix(SAFETENSORS), UNLIMITED)
        self._ranks: dict[str, int] = {}

    def module(self, key: str) -> Module | None:
        """The module whose LoRA can change a tensor of the checkpoint; `None` where there is none, as of norms and embeddings."""
        module = self._architecture.modules.get(key) if self._architecture is not None else None
        return module if module is not None and module.kind != "embedding" else None

    def write(self, module: Module, left: Tensor, right: Tensor) -> None:
        """Write left (R, K) and right (K, C), whose product is the delta as it lies in the checkpoint."""
        first, second = factor_names(module.name)
        self._factors.write(first, left.T if module.transposed else right)
        self._factors.write(second, right.T if module.transposed else left)
        self._ranks[module.name] = left.shape[1]

    def close(self, base: BaseRecord) -> list[Path]:
        """Finish the files; returns them."""
        files = self._factors.close()
        if self._ranks:
            assert self._architecture is not None
            path = self._folder / ADAPTER_CONFIG
            config = adapter_config(self._architecture, self._ranks, base.repo_id, base.commit)
            write_text(path, dump_json(config))
            files.append(path)
        return files


_TASKS = {"ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM", "ForConditionalGeneration": "SEQ_2_SEQ_LM"}


def adapter_config(
    architecture: Architecture, ranks: Mapping[str, int], base_id: str | None, revision: str | None
) -> dict[str, Any]:
    """The `adapter_config.json` of factors that need no scale: alpha = rank for every module.

    Args:
        architecture (`Architecture`): of the base.
        ranks (`Mapping[str, int]`): the rank of each module, by its name in the model.
        base_id, revision (`str`): what PEFT will look for.
    """
    most = max(ranks.values())
    others = {name: rank for name, rank in sorted(ranks.items()) if rank != most}
    kinds = {module.name: module.kind for module in architecture.modules.values()}
    return {
        "peft_type": "LORA",
        "task_type": next((task for ending, task in _TASKS.items() if architecture.name.endswith(ending)), None),
        "base_model_name_or_path": base_id,
        "revision": revision,
        "inference_mode": True,
        "r": most,
        "lora_alpha": most,
        "rank_pattern": others,
        "alpha_pattern": others,
        "target_modules": sorted(ranks),
        "fan_in_fan_out": any(kinds[name] == "conv1d" for name in ranks),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "modules_to_save": None,
    }


def factor_names(module: str) -> tuple[str, str]:
    """The names PEFT gives A and B of a module in `adapter_model.safetensors`."""
    return f"{PEFT_PREFIX}{module}.lora_A.weight", f"{PEFT_PREFIX}{module}.lora_B.weight"
