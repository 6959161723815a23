"""Adapters whose modules have the names of older versions of transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from dem_hub.checkpoints.base_model import Base
from dem_hub.errors import AdapterError
from dem_hub.hub.download import Resolved
from dem_hub.merging.lazy import merged_tensor
from dem_hub.vectors.lora.names import parameter_of, rename
from tests.support import families
from tests.support.lora_merges import merge_one
from tests.support.tiny_models import edit_json, load_tensors

# Models whose checkpoints have the names that the modules had once, and names of modules in an old config.
MODELS: dict[str, Callable[[bool], Any]] = {
    "qwen2.5-vl": families.qwen2_5_vl,
    "gemma3": families.gemma3,
    "mistral3": families.mistral3,
}


def with_old_names(base: Path, adapter: Path) -> dict[str, str]:
    """Give an adapter's tensors the names of the checkpoint, and return the old name of each module."""
    architecture = Base(Resolved.local(base)).architecture
    assert architecture is not None
    old = {module.name: key.removesuffix(".weight") for key, module in architecture.modules.items()}
    tensors = {}
    for name, tensor in load_tensors(adapter, "adapter_model").items():
        module = parameter_of(name).removesuffix(".weight")
        tensors[name.replace(f".{module}.", f".{old[module]}.")] = tensor
    save_file(tensors, adapter / "adapter_model.safetensors", {"format": "pt"})
    return old


@pytest.mark.filterwarnings("ignore")  # of PEFT and transformers, about sizes that no real model has
@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}], ids=["lora", "saved head"])
@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_old_names_are_those_of_today(tmp_path: Path, make: Callable[[bool], Any], options: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = make(False)
    model.save_pretrained(base)
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options)
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "modules_to_save" in name:
                parameter.add_(0.1)
    adapted.save_pretrained(adapter)
    expected = merge_one(base, adapter)
    changed = {name: merged_tensor(expected, name) for name in expected.base if expected.active(name)}
    assert len(changed) > 4
    old = with_old_names(base, adapter)
    # patterns of an old config have old names, too
    module = next(name for name in old if name.endswith("layers.1.self_attn.q_proj"))
    edit_json(adapter / "adapter_config.json", alpha_pattern={f"^{old[module].replace('.', chr(92) + '.')}": 16})
    found = merge_one(base, adapter)
    assert {name for name in found.base if found.active(name)} == set(changed)
    for name, tensor in changed.items():
        before = expected.base.read(name)
        factor = 2.0 if "layers.1.self_attn.q_proj" in name else 1.0
        torch.testing.assert_close(merged_tensor(found, name), before + factor * (tensor - before))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [r"model\.layers\..*\.[qv]_proj", "all-linear"])
def test_patterns_of_an_old_config_have_old_names(tmp_path: Path, targets: str) -> None:
    """What a pattern matched then, and the file lacks, is missing."""
    from peft import LoraConfig, get_peft_model

    base, adapter = tmp_path / "base", tmp_path / "adapter"
    model = families.qwen2_5_vl(False)
    model.save_pretrained(base)
    today = targets.replace(r"model\.layers", r"model\.language_model\.layers")
    get_peft_model(model, LoraConfig(r=2, target_modules=today, init_lora_weights=False)).save_pretrained(adapter)
    with_old_names(base, adapter)
    edit_json(adapter / "adapter_config.json", target_modules=targets)
    merge_one(base, adapter)
    tensors = load_tensors(adapter, "adapter_model")
    kept = {name: tensor for name, tensor in tensors.items() if "layers.1.self_attn.v_proj" not in name}
    assert len(kept) == len(tensors) - 2
    save_file(kept, adapter / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(AdapterError, match="layers.1.self_attn.v_proj' is in target_modules and has no lora_A"):
        merge_one(base, adapter)


@pytest.mark.filterwarnings("ignore")
def test_names_of_no_version_are_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = families.qwen2_5_vl(False)
    model.save_pretrained(tmp_path / "base")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    tensors = load_tensors(tmp_path / "adapter", "adapter_model")
    tensors = {name.replace("language_model", "words"): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(AdapterError, match="no single weight for a module 'model.words.layers.0"):
        merge_one(tmp_path / "base", tmp_path / "adapter")


def test_rename() -> None:
    names = ["base_model.model.a.b.lora_A.weight", "base_model.model.a.head.weight", "base_model.model.c.lora_B.weight"]
    bare, old = rename(names, {"a.b.weight": "x.b.weight", "a.head.weight": "head.weight"})
    assert list(bare.values()) == ["x.b.lora_A.weight", "head.weight", "c.lora_B.weight"]
    assert old == {"x.b": "a.b"}
