"""Our adapters, read by PEFT and as any other adapter."""

import json
from pathlib import Path

import pytest
import torch

from dem_hub import DEMModel, DistributionVector
from dem_hub.checkpoints.base_model import Base
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.merging.lazy import merged_tensor
from dem_hub.vectors.lora.writer import AdapterWriter
from tests.support.families import FAMILIES
from tests.support.families import build as build_family
from tests.support.lora_merges import merge_one
from tests.support.other_readers import READERS, read_as
from tests.support.tiny_models import Zoo, build, load_tensors, make_adapter, reshard, shake


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


# `task_type` where it is not that of a causal language model: encoders, and models that read images or hear, have none.
TASKS: dict[str, str | None] = {
    "t5": "SEQ_2_SEQ_LM",
    **dict.fromkeys(["bert", "modernbert", "vit", "whisper", "llava", "qwen2.5-vl", "qwen3-vl"]),
    **dict.fromkeys(["gemma3", "gemma4", "mistral3", "glm-4v"]),
}


@pytest.mark.filterwarnings("ignore")  # of transformers, about sizes that no real model has
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - {"llama4", "mamba"}))
def test_peft_runs_our_adapter_of_any_family(tmp_path: Path, family: str) -> None:
    """A wrong `task_type` makes a model that cannot be run.

    PEFT cannot run the router of Llama 4, and not all of Mamba's vector can be an adapter.
    """
    from peft import PeftModel

    base = build_family(family)
    base.save_pretrained(tmp_path / "base")
    shake(base, seed=1, rank=2)
    base.save_pretrained(tmp_path / "finetuned")
    vector = DistributionVector.extract(tmp_path / "base", tmp_path / "finetuned", codec="lowrank", rank=2)
    vector.save_pretrained(tmp_path / "vector")
    config = json.loads((tmp_path / "vector" / "adapter_config.json").read_text())
    assert config["task_type"] == TASKS.get(family, "CAUSAL_LM")
    theirs = PeftModel.from_pretrained(type(base).from_pretrained(tmp_path / "base"), tmp_path / "vector")
    ours = DEMModel.from_pretrained(tmp_path / "base", vectors={str(tmp_path / "vector"): 1.0})
    with torch.no_grad():
        logits = [model.eval()(**FAMILIES[family].inputs()).logits for model in (ours, theirs)]
    torch.testing.assert_close(logits[1], logits[0], rtol=1e-4, atol=1e-4)


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


def test_one_rank_for_every_reader(zoo: Zoo, tmp_path: Path) -> None:
    """A fine-tune that is two LoRAs merged has matrices of two ranks. The adapter of its vector has one."""
    base = zoo.models("llama-tied", "float32").base
    finetuned = merged_loras(zoo, tmp_path)
    DistributionVector.extract(base, finetuned).save_pretrained(tmp_path / "vector")
    config = json.loads((tmp_path / "vector" / "adapter_config.json").read_text())
    assert (config["rank_pattern"], config["alpha_pattern"]) == ({}, {})
    vector = DistributionVector.from_pretrained(tmp_path / "vector")
    expected = {name: tensor - load_tensors(base)[name] for name, tensor in load_tensors(finetuned).items()}
    for reader in READERS:
        for name, delta in read_as(reader, tmp_path / "vector", base).items():
            torch.testing.assert_close(delta.float(), expected[name], rtol=1e-3, atol=1e-6)
            torch.testing.assert_close(vector.decode(name, base), expected[name], rtol=1e-3, atol=1e-6)


def test_ranks_that_save_much_stay_and_that_is_said(zoo: Zoo, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    base = zoo.models("llama-tied", "float32").base
    finetuned = merged_loras(zoo, tmp_path)
    options = {"codec": "lowrank", "energy": 0.6}
    DistributionVector.extract(base, finetuned, **options).save_pretrained(tmp_path / "vector")
    config = json.loads((tmp_path / "vector" / "adapter_config.json").read_text())
    assert config["rank_pattern"]
    assert "llama.cpp scales the lower ranks wrongly. dem-hub export" in caplog.text
    peft, vllm = (read_as(reader, tmp_path / "vector", base) for reader in ("peft", "vllm"))
    for name, delta in peft.items():
        torch.testing.assert_close(vllm[name], delta, rtol=1e-5, atol=1e-7)


def merged_loras(zoo: Zoo, folder: Path) -> Path:
    base = zoo.models("llama-tied", "float32").base
    for name, rank, modules in (("a", 3, ["q_proj", "down_proj"]), ("b", 2, ["down_proj", "up_proj", "o_proj"])):
        make_adapter(base, folder / name, target_modules=modules, r=rank, lora_alpha=rank)
    vectors = {str(folder / name): 1.0 for name in "ab"}
    DEMModel.from_pretrained(base, vectors=vectors, dtype="float32").save_pretrained(folder / "finetuned")
    return folder / "finetuned"


def test_a_tied_head_gets_no_lora(zoo: Zoo, tmp_path: Path) -> None:
    """Some checkpoints have the tied tensor under the head's name alone. A LoRA on the head would leave out the rest."""

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")

    base = reshard(zoo.models("llama-tied", "float32").base, tmp_path / "base", change=rename)
    architecture = Base(resolve(VectorSource(str(base)), MODEL_FILES)).architecture
    writer = AdapterWriter(tmp_path, architecture)
    assert writer.module("lm_head.weight") is None
    assert writer.module("model.layers.0.mlp.up_proj.weight") is not None
