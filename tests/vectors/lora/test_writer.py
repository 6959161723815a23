"""Our adapters, read by PEFT and as any other adapter."""

import json
from pathlib import Path

import pytest
import torch

from dem_hub import DEMModel
from dem_hub.merging.lazy import merged_tensor
from tests.support.lora_merges import merge_one
from tests.support.tiny_models import Zoo, build


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "bert"])
def test_our_adapter_in_peft(zoo: Zoo, tmp_path: Path, family: str) -> None:
    """The vector of a low-rank fine-tune of linears is all in the adapter: PEFT alone makes the same model of it."""
    import transformers
    from peft import PeftModel

    models = zoo.models(family, "float32")
    vector = zoo.vector(family, "float32", "lowrank")
    assert not (vector / "vector_model.safetensors").exists()
    cls = getattr(transformers, type(build(family)).__name__)
    theirs = PeftModel.from_pretrained(cls.from_pretrained(models.base), vector)
    ours = DEMModel.from_pretrained(models.base, vectors={str(vector): 1.0})
    finetuned = cls.from_pretrained(models.low)
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        logits = [model(tokens).logits for model in (ours, theirs, finetuned, cls.from_pretrained(models.base))]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(logits[2], logits[0], rtol=1e-4, atol=1e-5)
    assert (logits[3] - logits[0]).abs().max() > 1e-3


def test_our_adapter_reads_back_as_an_adapter(zoo: Zoo, tmp_path: Path) -> None:
    """Ours without its vector_config.json is a LoRA like any other."""
    base, vector = zoo.models("gpt2", "float32").base, zoo.vector("gpt2", "float32", "lowrank")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_bytes((vector / name).read_bytes())
    ours, theirs = merge_one(base, vector), merge_one(base, tmp_path)
    for name in ours.base:
        assert torch.equal(merged_tensor(ours, name), merged_tensor(theirs, name))


def test_adapter_config_is_what_peft_writes(zoo: Zoo) -> None:
    config = json.loads((zoo.vector("gpt2", "bfloat16", "lossy") / "adapter_config.json").read_text())
    assert (config["task_type"], config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (
        "CAUSAL_LM",
        4,
        4,
        True,
    )
    assert "transformer.h.0.attn.c_attn" in config["target_modules"]
