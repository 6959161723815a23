"""Adapters made by PEFT: dem_hub's merge of them, compared with PEFT's own merge."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from dem_hub import DistributionVector
from dem_hub.checkpoints.base_model import Base
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.merging.lazy import merged_tensor
from dem_hub.merging.merge import Merge
from tests.support.tiny_models import Zoo, load_tensors, make_adapter

LINEAR = ["q_proj", "v_proj", "down_proj"]


def train_all(adapted: Any) -> None:
    """Change the trained parameters that do not belong to a LoRA, as training would."""
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            parameter.add_(torch.randn_like(parameter) * 0.05)


def merge_one(base: Path, adapter: Path, coefficient: float = 1.0) -> Merge:
    opened = Base(resolve(VectorSource(str(base)), MODEL_FILES))
    return Merge.of(opened, [(DistributionVector.from_pretrained(adapter), coefficient)])


def assert_as_peft(base: Path, adapter: Path, adapted: Any, size: int | None = None) -> None:
    """Check that our merge at coefficient 1 in float32 equals the result of `merge_and_unload`."""
    merge = merge_one(base, adapter)
    assert any(merge.active(name) for name in merge.base)
    expected = adapted.merge_and_unload().state_dict()
    names = {name: key for key, name in ((key, key if key in expected else f"transformer.{key}") for key in merge.base)}
    for name, key in names.items():
        # PEFT multiplies in float32 and adds; a few of its last bits may differ from our sum in float64
        torch.testing.assert_close(
            merged_tensor(merge, key, torch.float32),
            expected[name],
            rtol=1e-6,
            atol=2e-8,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def changed_adapter(zoo: Zoo, folder: Path, *changes: Callable[[dict[str, Tensor]], object]) -> Path:
    make_adapter(zoo.models("llama-tied", "float32").base, folder, target_modules=LINEAR, r=4)
    tensors = load_tensors(folder, "adapter_model")
    for change in changes:
        change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
