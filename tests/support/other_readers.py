"""A LoRA adapter's deltas as other programs compute them: each takes the scale of a module from another place."""

import json
from pathlib import Path

import torch
from torch import Tensor

from tests.support.tiny_models import load_tensors

READERS = ("peft", "vllm", "llama.cpp")

_PREFIX = "base_model.model."


def read_as(reader: str, adapter: Path, base: Path) -> dict[str, Tensor]:
    """Return the delta of each tensor that the adapter names, in float64 by the base's keys.

    * PEFT: its own merge.
    * vLLM: `lora_alpha / r` for all modules (`PEFTHelper.vllm_lora_scaling_factor`).
    * llama.cpp: `lora_alpha` by the rank of the tensor (`llama_adapter_lora_weight::get_scale`).
    """
    if reader == "peft":
        return _merged_by_peft(adapter, base)
    config = json.loads((adapter / "adapter_config.json").read_text())
    factors = load_tensors(adapter, "adapter_model")
    keys = load_tensors(base)
    deltas = {}
    for name, b in factors.items():
        if not name.endswith(".lora_B.weight"):
            continue
        rank = config["r"] if reader == "vllm" else b.shape[1]
        module = name.removeprefix(_PREFIX).removesuffix(".lora_B.weight")
        delta = config["lora_alpha"] / rank * b.double() @ factors[f"{_PREFIX}{module}.lora_A.weight"].double()
        key = next(key for key in keys if f"{module}.weight".endswith(key))
        if config["fan_in_fan_out"]:
            delta = delta.T
        deltas[key] = delta
    return deltas


def _merged_by_peft(adapter: Path, base: Path) -> dict[str, Tensor]:
    import transformers
    from peft import PeftModel

    config = json.loads((base / "config.json").read_text())
    model = getattr(transformers, config["architectures"][0]).from_pretrained(base, dtype=torch.float64)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict()
    changed = {name: after[name] - before[name] for name in before if not torch.equal(after[name], before[name])}
    keys = load_tensors(base)
    return {next(key for key in keys if name.endswith(key)): delta for name, delta in changed.items()}
