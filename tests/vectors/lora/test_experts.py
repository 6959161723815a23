"""LoRAs on experts, which are one tensor in memory and a matrix each on disk."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dem_hub import DEMModel
from dem_hub.errors import AdapterError
from dem_hub.merging.lazy import merged_tensor
from tests.support.lora_merges import merge_one
from tests.support.tiny_models import Zoo, edit_json, load_tensors, make_adapter

EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


# Experts that are one tensor in memory: of Qwen's there are 11, so that their order is not that of their names.
EXPERT_CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "both": ("mixtral", {"target_modules": ["q_proj"], "target_parameters": EXPERTS, "r": 4, "lora_alpha": 6}),
    "down alone": ("mixtral", {"target_modules": [], "target_parameters": ["experts.down_proj"], "r": 3}),
    "up alone": ("mixtral", {"target_modules": [], "target_parameters": ["experts.gate_up_proj"], "r": 3}),
    "with the router": ("mixtral", {"target_modules": "all-linear", "r": 4, "lora_alpha": 6}),
    "rslora and patterns": ("mixtral", {"target_modules": [], "target_parameters": EXPERTS, "r": 4, "use_rslora": True, "rank_pattern": {"gate_up_proj": 2}, "alpha_pattern": {r".*\.down_proj": 5}}),
    "eleven": ("qwen2-moe", {"target_modules": ["q_proj"], "target_parameters": EXPERTS, "r": 2}),
    "shared ones": ("qwen2-moe", {"target_modules": ["shared_expert.up_proj", "shared_expert_gate"], "r": 2}),
}  # fmt: skip


@pytest.mark.filterwarnings(
    "ignore:The following .*_pattern keys did not match any targeted module"
)  # PEFT, of those for parameters
@pytest.mark.parametrize(("family", "options"), EXPERT_CASES.values(), ids=EXPERT_CASES)
def test_experts(zoo: Zoo, tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    """What PEFT's `merge_and_unload` leaves on the disk, by the names there."""
    base = zoo.models(family, "float32").base
    adapted = make_adapter(base, tmp_path / "adapter", **options)
    merge = merge_one(base, tmp_path / "adapter")
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    expected = load_tensors(tmp_path / "merged")
    start = load_tensors(base)
    assert expected.keys() == start.keys()
    assert {name for name in expected if not torch.equal(expected[name], start[name])} == {
        name for name in start if merge.active(name)
    }
    for name, tensor in expected.items():
        torch.testing.assert_close(
            merged_tensor(merge, name, torch.float32), tensor, rtol=1e-6, atol=2e-8, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_slices_of_experts(zoo: Zoo, tmp_path: Path) -> None:
    """As tensor-parallel loaders ask for them."""
    base = zoo.models("mixtral", "float32").base
    make_adapter(base, tmp_path / "adapter", **EXPERT_CASES["both"][1])
    merge, cpu = merge_one(base, tmp_path / "adapter"), torch.device("cpu")
    for name in (
        "model.layers.1.block_sparse_moe.experts.2.w3.weight",
        "model.layers.0.block_sparse_moe.experts.1.w2.weight",
    ):
        whole = merged_tensor(merge, name, torch.float32)
        for index in ((slice(5, 19), slice(3, 30)), (slice(0, 32), slice(8, 16))):
            assert torch.allclose(merge.tensor(name, index, cpu, torch.float32), whole[index], rtol=1e-6, atol=2e-8)


def test_a_model_with_experts_of_an_adapter(zoo: Zoo, tmp_path: Path) -> None:
    base = zoo.models("mixtral", "float32").base
    adapted = make_adapter(base, tmp_path / "adapter", **EXPERT_CASES["both"][1])
    ours = DEMModel.from_pretrained(base, vectors={str(tmp_path / "adapter"): 1.0})
    ids = torch.tensor([[1, 7, 9, 11]])
    torch.testing.assert_close(ours(ids).logits, adapted(ids).logits, rtol=1e-5, atol=1e-5)


def square(family: str) -> Any:
    """A model whose experts are one tensor on disk too, with square matrices: gpt-oss has such."""
    import transformers as t

    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8,
             "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1,
             "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    if family == "gpt-oss":
        return t.GptOssForCausalLM(t.GptOssConfig(**sizes))
    return t.Llama4ForCausalLM(t.Llama4TextConfig(**sizes, intermediate_size_mlp=32))


@pytest.mark.parametrize("version", ["as written", "0.18.1", None])
@pytest.mark.parametrize("family", ["gpt-oss", "llama4"])
def test_experts_that_are_one_tensor_on_disk(tmp_path: Path, family: str, version: str | None) -> None:
    """The reference is PEFT's merge. gpt-oss multiplies from the right, which tells how B @ A lies in every version."""
    square(family).save_pretrained(tmp_path / "base")
    parameters = [f"experts.{name}" for name in ("gate_up_proj", "down_proj")]
    adapted = make_adapter(tmp_path / "base", tmp_path, r=2, target_modules=[], target_parameters=parameters)
    if version != "as written":
        edit_json(tmp_path / "adapter_config.json", peft_version=version)
    if family == "llama4" and version is None:
        with pytest.raises(AdapterError, match="peft_version in adapter_config.json must say which wrote it"):
            merge_one(tmp_path / "base", tmp_path)
        return
    expected = adapted.merge_and_unload().state_dict()
    start = load_tensors(tmp_path / "base")
    merge = merge_one(tmp_path / "base", tmp_path)
    for name in start:
        wanted = expected[name]
        if family == "llama4" and version == "0.18.1" and name.endswith("down_proj") and wanted.dim() == 3:
            wanted = start[name] + (wanted - start[name]).mT
        found = merged_tensor(merge, name, torch.float32)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


EXPERT_CHANGES: dict[str, tuple[str, torch.Tensor, str]] = {
    "no such module": (
        "mlp.experts.0.w1.lora_A.weight",
        torch.ones(2, 32),
        "the base has no single weight for a module",
    ),
    "sizes": (
        "mlp.experts.lora_A.weight",
        torch.ones(12, 47),
        "which are for none of its experts' parameters, or for several",
    ),
    "number of experts": (
        "mlp.experts.lora_A.weight",
        torch.ones(13, 48),
        "which are for none of its experts' parameters",
    ),
}


@pytest.mark.parametrize(("name", "tensor", "message"), EXPERT_CHANGES.values(), ids=EXPERT_CHANGES)
def test_experts_that_do_not_fit(zoo: Zoo, tmp_path: Path, name: str, tensor: Tensor, message: str) -> None:
    base = zoo.models("mixtral", "float32").base
    make_adapter(base, tmp_path / "adapter", **EXPERT_CASES["both"][1])
    tensors = load_tensors(tmp_path / "adapter", "adapter_model")
    tensors[f"base_model.model.model.layers.0.{name}"] = tensor
    save_file(tensors, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match=message):
        merge_one(base, tmp_path / "adapter")


@pytest.mark.parametrize(("hidden", "intermediate"), [(32, 16), (32, 24)], ids=["both ways fit", "one way fits"])
@pytest.mark.parametrize("version", ["0.17.1", "0.18.1", "0.19.0", "0.21.2", None, "0.19.1.dev0@abc"])
def test_experts_of_older_versions_of_peft(tmp_path: Path, hidden: int, intermediate: int, version: str | None) -> None:
    """PEFT before 0.19 has A and B the other way round: the delta is the transpose of B @ A."""
    from transformers import OlmoeConfig, OlmoeForCausalLM

    experts, rank = 3, 2
    size = {"vocab_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
            "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    config = OlmoeConfig(
        **size, hidden_size=hidden, intermediate_size=intermediate, num_experts=experts, num_experts_per_tok=2
    )
    OlmoeForCausalLM(config).save_pretrained(tmp_path / "base")
    is_old = version in ("0.17.1", "0.18.1")
    rows, columns = (hidden, 2 * intermediate) if is_old else (2 * intermediate, hidden)
    a, b = torch.randn(experts * rank, columns), torch.randn(rows, experts * rank)
    name = "base_model.model.model.layers.0.mlp.experts.lora_"
    (tmp_path / "adapter").mkdir()
    save_file({f"{name}A.weight": a, f"{name}B.weight": b}, tmp_path / "adapter" / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_parameters": ["mlp.experts.gate_up_proj"]}
    if version is not None:
        settings["peft_version"] = version
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    if hidden == 2 * intermediate and version in (None, "0.19.1.dev0@abc"):
        with pytest.raises(AdapterError, match="peft_version in adapter_config.json must say which wrote it"):
            merge_one(tmp_path / "base", tmp_path / "adapter")
        return
    merge = merge_one(tmp_path / "base", tmp_path / "adapter")
    start = load_tensors(tmp_path / "base")
    for expert in range(experts):
        delta = b[:, expert::experts].double() @ a[expert * rank : (expert + 1) * rank].double()
        delta = delta.T if is_old else delta
        for part, kind in enumerate(("gate_proj", "up_proj")):
            key = f"model.layers.0.mlp.experts.{expert}.{kind}.weight"
            expected = start[key].double() + delta[part * intermediate : (part + 1) * intermediate]
            torch.testing.assert_close(
                merged_tensor(merge, key, torch.float32).double(), expected, rtol=1e-6, atol=1e-6
            )


@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe"])
def test_a_lora_on_each_expert(zoo: Zoo, tmp_path: Path, family: str) -> None:
    """As transformers 4 had them, a module each: the names are those of the tensors on disk."""
    base = zoo.models(family, "float32").base
    start = load_tensors(base)
    expected = {name: tensor.double() for name, tensor in start.items()}
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for key in [name for name in start if ".experts." in name]:
        rows, columns = start[key].shape
        left, right = torch.randn(rows, 3, generator=generator), torch.randn(3, columns, generator=generator)
        module = f"base_model.model.{key.removesuffix('.weight')}"
        factors |= {f"{module}.lora_A.weight": right, f"{module}.lora_B.weight": left}
        expected[key] += 2 * left.double() @ right.double()
    save_file(factors, tmp_path / "adapter_model.safetensors")
    names = sorted({name.split(".")[-3] for name in factors})
    shared = [f"shared_expert.{name}" for name in names]
    settings = {"peft_type": "LORA", "r": 3, "lora_alpha": 6, "target_modules": names, "exclude_modules": shared}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    merge = merge_one(base, tmp_path)
    for name, tensor in expected.items():
        torch.testing.assert_close(merged_tensor(merge, name, torch.float32).double(), tensor, rtol=1e-6, atol=1e-6)
