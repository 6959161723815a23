"""LoRA adapters that PEFT made: read exactly as PEFT would merge them, or refused with the reason; and ours, read by PEFT."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dem_hub import DEMModel, DistributionVector
from dem_hub.checkpoints.base_model import Base
from dem_hub.errors import AdapterError, CheckpointError
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.merging.lazy import merged_tensor
from dem_hub.merging.merge import Merge
from tests.support.tiny_models import Zoo, build, edit_json, load_tensors, make_adapter, reshard

LINEAR = ["q_proj", "v_proj", "down_proj"]


def train_all(adapted: Any) -> None:
    """What training would do to the parameters that are not a LoRA's."""
    for name, parameter in adapted.named_parameters():
        if parameter.requires_grad and "lora_" not in name:
            parameter.add_(torch.randn_like(parameter) * 0.05)


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama-tied", {"target_modules": LINEAR, "r": 4, "lora_alpha": 7}),
    "all linear": ("llama-untied", {"target_modules": "all-linear", "r": 4}),
    "regex": ("llama-tied", {"target_modules": r".*\.layers\.1\..*(q|up)_proj", "r": 2}),
    "rank_pattern": (
        "llama-tied",
        {"target_modules": LINEAR, "r": 4, "rank_pattern": {"v_proj": 2, r"layers\.1\.mlp\.down_proj": 7}},
    ),
    "alpha_pattern": (
        "llama-tied",
        {"target_modules": LINEAR, "r": 4, "alpha_pattern": {"v_proj": 3, r"^model\.layers\.0\.self_attn\.q_proj": 31}},
    ),
    "both patterns, rslora": (
        "llama-tied",
        {
            "target_modules": LINEAR,
            "r": 4,
            "use_rslora": True,
            "rank_pattern": {"q_proj": 9},
            "alpha_pattern": {"q_proj": 5, "down_proj": 1},
        },
    ),
    "some layers": ("llama-tied", {"target_modules": LINEAR, "layers_to_transform": [1], "r": 3}),
    "gpt2": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "r": 3, "fan_in_fan_out": True}),
    "gpt2 square": ("gpt2", {"target_modules": ["attn.c_proj"], "r": 5, "lora_alpha": 3, "fan_in_fan_out": True}),
    "bert": ("bert", {"target_modules": ["query", "value", "dense"], "r": 3}),
    "output embedding": ("llama-untied", {"target_modules": [*LINEAR, "lm_head"], "r": 4}),
    "input embedding": ("llama-untied", {"target_modules": [*LINEAR, "embed_tokens"], "r": 4}),
    "position embedding": ("gpt2", {"target_modules": ["c_attn", "wpe"], "r": 3, "fan_in_fan_out": True}),
    "modules_to_save": (
        "llama-untied",
        {"target_modules": LINEAR, "modules_to_save": ["embed_tokens", "lm_head", "norm"]},
    ),
    "bias all": ("gpt2", {"target_modules": ["c_attn", "c_fc"], "bias": "all", "fan_in_fan_out": True}),
    "bias lora_only": ("bert", {"target_modules": ["query", "dense"], "bias": "lora_only"}),
    "orthogonal": ("llama-tied", {"target_modules": LINEAR, "r": 4, "init_lora_weights": "orthogonal"}),
}


def merge_one(base: Path, adapter: Path, coefficient: float = 1.0) -> Merge:
    opened = Base(resolve(VectorSource(str(base)), MODEL_FILES))
    return Merge.of(opened, [(DistributionVector.from_pretrained(adapter), coefficient)])


def assert_as_peft(base: Path, adapter: Path, adapted: Any, size: int | None = None) -> None:
    """Our merge at coefficient 1 in float32 is what `merge_and_unload` leaves in the model."""
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


@pytest.mark.parametrize(("family", "options"), CASES.values(), ids=CASES)
def test_as_peft_merges_it(zoo: Zoo, tmp_path: Path, family: str, options: dict[str, Any]) -> None:
    base = zoo.models(family, "float32").base
    adapted = make_adapter(base, tmp_path / "adapter", train=train_all, **options)
    assert_as_peft(base, tmp_path / "adapter", adapted)


def test_loaded_model_is_the_one_that_peft_merges(zoo: Zoo, tmp_path: Path) -> None:
    base = zoo.models("llama-untied", "float32").base
    adapted = make_adapter(base, tmp_path / "adapter", train=train_all, **CASES["modules_to_save"][1])
    model = DEMModel.from_pretrained(base, vectors={str(tmp_path / "adapter"): 1.0})
    expected = adapted.merge_and_unload()
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, expected(tokens).logits, rtol=1e-4, atol=1e-6)


def test_gpt2_without_its_prefix_on_disk(zoo: Zoo, tmp_path: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    base = reshard(zoo.models("gpt2", "float32").base, tmp_path / "base", change=drop)
    adapted = make_adapter(base, tmp_path / "adapter", target_modules=["c_attn", "c_proj"], r=3, fan_in_fan_out=True)
    assert_as_peft(base, tmp_path / "adapter", adapted)


@pytest.mark.parametrize("coefficient", [0.5, -2.0])
def test_saved_modules_are_scaled_like_any_delta(zoo: Zoo, tmp_path: Path, coefficient: float) -> None:
    base = zoo.models("llama-untied", "float32").base
    make_adapter(base, tmp_path / "adapter", train=train_all, target_modules=LINEAR, modules_to_save=["lm_head"])
    before = load_tensors(base)["lm_head.weight"].double()
    after = load_tensors(tmp_path / "adapter", "adapter_model")["base_model.model.lm_head.weight"].double()
    found = merged_tensor(merge_one(base, tmp_path / "adapter", coefficient), "lm_head.weight").double()
    torch.testing.assert_close(found, before + coefficient * (after - before), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("family", ["llama-untied", "llama-tied"])
def test_resized_vocabulary(zoo: Zoo, tmp_path: Path, family: str) -> None:
    base = zoo.models(family, "float32").base
    adapted = make_adapter(base, tmp_path / "adapter", resize=70, target_modules=LINEAR, r=4)
    saved = load_tensors(tmp_path / "adapter", "adapter_model")
    rows = saved["base_model.model.model.embed_tokens.weight"][64:]
    merge = merge_one(base, tmp_path / "adapter", 0.3)
    assert torch.equal(merged_tensor(merge, "model.embed_tokens.weight")[64:], rows)
    assert merge.vocabulary == 70
    assert_as_peft(base, tmp_path / "adapter", adapted)


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


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "dora": (
        "llama-tied",
        {"target_modules": LINEAR, "use_dora": True},
        "use_dora is True: DoRA rescales the base's weights themselves",
    ),
    "pissa": (
        "llama-tied",
        {"target_modules": LINEAR, "init_lora_weights": "pissa"},
        "init_lora_weights is 'pissa', which changes the base",
    ),
    "olora": (
        "llama-tied",
        {"target_modules": LINEAR, "init_lora_weights": "olora"},
        "init_lora_weights is 'olora', which changes the base",
    ),
    "tied embedding": (
        "llama-tied",
        {"target_modules": [*LINEAR, "embed_tokens"]},
        "'model.embed_tokens' is one tensor with another embedding",
    ),
    "tied saved module": (
        "gpt2",
        {"target_modules": ["c_fc"], "modules_to_save": ["wte"]},
        "'transformer.wte' is one tensor with another embedding",
    ),
    "lora_bias": ("llama-tied", {"target_modules": LINEAR, "lora_bias": True}, "lora_bias is True: a bias in lora_B"),
    "trainable tokens": (
        "llama-untied",
        {"target_modules": LINEAR, "trainable_token_indices": [1, 2]},
        "trainable_token_indices is .*not stored as B @ A",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "options", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_plain_sum(zoo: Zoo, tmp_path: Path, family: str, options: dict[str, Any], message: str) -> None:
    base = zoo.models(family, "float32").base
    make_adapter(base, tmp_path / "adapter", train=train_all, **options)
    with pytest.raises(AdapterError, match=message):
        merge_one(base, tmp_path / "adapter")


def test_a_module_that_was_saved_and_not_trained_changes_nothing(zoo: Zoo, tmp_path: Path) -> None:
    base = zoo.models("gpt2", "float32").base
    make_adapter(base, tmp_path / "adapter", target_modules=["c_fc"], modules_to_save=["wte"], fan_in_fan_out=True)
    assert not merge_one(base, tmp_path / "adapter").active("transformer.wte.weight")


def test_other_methods_of_peft(zoo: Zoo, tmp_path: Path) -> None:
    from peft import IA3Config, get_peft_model
    from transformers import LlamaForCausalLM

    base = zoo.models("llama-tied", "float32").base
    config = IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"])
    get_peft_model(LlamaForCausalLM.from_pretrained(base), config).save_pretrained(tmp_path)
    with pytest.raises(
        AdapterError,
        match=r"peft_type is 'IA3', and only LORA is a sum of B @ A(?s:.*)extract the vector: dem-hub extract",
    ):
        DistributionVector.from_pretrained(tmp_path)


def test_several_reasons_at_once(zoo: Zoo, tmp_path: Path) -> None:
    make_adapter(zoo.models("llama-tied", "float32").base, tmp_path, target_modules=LINEAR)
    edit_json(
        tmp_path / "adapter_config.json",
        use_dora=True,
        lora_bias=True,
        a_new_option=3,
        init_lora_weights="pissa_niter_4",
    )
    with pytest.raises(AdapterError) as caught:
        DistributionVector.from_pretrained(tmp_path)
    assert all(
        name in str(caught.value)
        for name in ("use_dora", "lora_bias", "a_new_option is 3: not known to leave", "pissa_niter_4")
    )


CHANGES: dict[str, tuple[Callable[[dict[str, Tensor]], object], str]] = {
    "unknown module": (
        lambda t: t.update({"base_model.model.model.other.lora_A.weight": torch.ones(4, 32)}),
        r"'base_model.model.model.other.lora_A.weight': the base has no single weight for a module 'model.other' \(LlamaForCausalLM\)",
    ),
    "unknown tensor": (
        lambda t: t.update({"base_model.model.extra": torch.ones(2)}),
        r"'base_model.model.extra' \[2\]: the base has no tensor",
    ),
    "only A": (
        lambda t: t.pop("base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"),
        "'model.layers.0.self_attn.q_proj' has only lora_A",
    ),
    "another size": (
        lambda t: t.update({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 31)}),
        r"'model.layers.0.self_attn.q_proj.weight' is \[32, 32\] in the base, and the LoRA's B @ A is \[32, 31\]",
    ),
    "ranks that differ": (
        lambda t: t.update({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(3, 32)}),
        r"'model.layers.0.self_attn.q_proj.weight' is .*\(A \[3, 32\], B \[32, 4\]\)",
    ),
    "convolution": (
        lambda t: t.update({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 32, 1)}),
        r"'model.layers.0.self_attn.q_proj' has factors of shape \[4, 32, 1\] and \[32, 4\]; only matrices",
    ),
    "saved module of another size": (
        lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(30)}),
        r"'model.norm.weight' is \[30\] in the adapter and \[32\] in the base",
    ),
}


def changed_adapter(zoo: Zoo, folder: Path, *changes: Callable[[dict[str, Tensor]], object]) -> Path:
    make_adapter(zoo.models("llama-tied", "float32").base, folder, target_modules=LINEAR, r=4)
    tensors = load_tensors(folder, "adapter_model")
    for change in changes:
        change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_adapters_that_do_not_fit(
    zoo: Zoo, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    adapter = changed_adapter(zoo, tmp_path / "adapter", change)
    with pytest.raises(AdapterError, match=message):
        merge_one(zoo.models("llama-tied", "float32").base, adapter)


def test_all_misfits_in_one_error(zoo: Zoo, tmp_path: Path) -> None:
    adapter = changed_adapter(
        zoo, tmp_path / "adapter", *(CHANGES[name][0] for name in ("unknown module", "unknown tensor", "only A"))
    )
    with pytest.raises(
        AdapterError, match=r"(?s)model.extra.*model.other.*has only lora_A.*Use the base it was trained on"
    ):
        merge_one(zoo.models("llama-tied", "float32").base, adapter)


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


def test_base_of_unknown_architecture(zoo: Zoo, tmp_path: Path) -> None:
    base = reshard(zoo.models("llama-tied", "float32").base, tmp_path / "base")
    (base / "config.json").unlink()
    with pytest.raises(
        AdapterError, match="The architecture of .* is not known.*Merge it with PEFT and extract the vector"
    ):
        merge_one(base, zoo.adapter("llama-tied"))


def test_nan_in_an_adapter(zoo: Zoo, tmp_path: Path) -> None:
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight"
    adapter = changed_adapter(zoo, tmp_path / "adapter", lambda tensors: tensors[key].fill_(torch.nan))
    with pytest.raises(CheckpointError, match="'model.layers.0.self_attn.q_proj.weight' .*not finite"):
        merged_tensor(
            merge_one(zoo.models("llama-tied", "float32").base, adapter), "model.layers.0.self_attn.q_proj.weight"
        )


def test_adapter_config_is_what_peft_writes(zoo: Zoo) -> None:
    config = json.loads((zoo.vector("gpt2", "bfloat16", "lossy") / "adapter_config.json").read_text())
    assert (config["task_type"], config["r"], config["lora_alpha"], config["fan_in_fan_out"]) == (
        "CAUSAL_LM",
        4,
        4,
        True,
    )
    assert "transformer.h.0.attn.c_attn" in config["target_modules"]
