"""Factors written as a PEFT adapter, tensor by tensor, whose scale is 1: what it adds is B @ A."""

import json
from pathlib import Path

from torch import Tensor

from dem_hub.checkpoints.architecture import Architecture, Module
from dem_hub.checkpoints.writer import TensorWriter
from dem_hub.files.atomic import write_text
from dem_hub.files.records import BaseRecord
from dem_hub.vectors.config import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from dem_hub.vectors.lora.reader import adapter_config, factor_names


class AdapterWriter:
    """The two files of an adapter in a folder; none where nothing was written."""

    def __init__(self, folder: Path, architecture: Architecture | None) -> None:
        self._folder, self._architecture = folder, architecture
        self._factors = TensorWriter(folder, ADAPTER_WEIGHTS.removesuffix(".safetensors"), 1 << 62)
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
            write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
            files.append(path)
        return files
