"""LoRA adapters that PEFT made: read exactly as PEFT would merge them, or refused where they do not fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dem_hub import DEMModel
from dem_hub.errors import AdapterError, CheckpointError
from dem_hub.merging.lazy import merged_tensor
from tests.support.lora_merges import LINEAR, assert_as_peft, changed_adapter, merge_one, train_all
from tests.support.tiny_models import Zoo, make_adapter, reshard

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


@pytest.mark.parametrize(("change", "message"), CHANGES.values(), ids=CHANGES)
def test_adapters_that_do_not_fit(
    zoo: Zoo, tmp_path: Path, change: Callable[[dict[str, Tensor]], object], message: str
) -> None:
    adapter = changed_adapter(zoo, tmp_path / "adapter", change)
    with pytest.raises(AdapterError, match=message):
        merge_one(zoo.models("llama-tied", "float32").base, adapter)


DAMAGED = "Fetch it again, or save it again."
OTHER_BASE = "Use the base it was trained on. If this is that base, merge the adapter"
REMEDIES = {
    "unknown module": OTHER_BASE,
    "unknown tensor": OTHER_BASE,
    "only A": DAMAGED,
    "another size": OTHER_BASE,
    "ranks that differ": DAMAGED,
    "convolution": OTHER_BASE,
    "saved module of another size": OTHER_BASE,
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_remedy_fits_the_fault(zoo: Zoo, tmp_path: Path, name: str) -> None:
    adapter = changed_adapter(zoo, tmp_path / "adapter", CHANGES[name][0])
    with pytest.raises(AdapterError) as caught:
        merge_one(zoo.models("llama-tied", "float32").base, adapter)
    assert [remedy for remedy in sorted({*REMEDIES.values()}) if remedy in str(caught.value)] == [REMEDIES[name]]


def test_all_misfits_in_one_error(zoo: Zoo, tmp_path: Path) -> None:
    adapter = changed_adapter(
        zoo, tmp_path / "adapter", *(CHANGES[name][0] for name in ("unknown module", "unknown tensor", "only A"))
    )
    with pytest.raises(
        AdapterError, match=r"(?s)model.extra.*model.other.*has only lora_A.*Use the base it was trained on"
    ):
        merge_one(zoo.models("llama-tied", "float32").base, adapter)


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


@pytest.mark.filterwarnings("ignore")  # PEFT, of tied embeddings
@pytest.mark.parametrize("targets", [["embed_tokens"], ["embed_tokens", "lm_head"]], ids=str)
@pytest.mark.parametrize("kind", ["target_modules", "modules_to_save"])
def test_both_ends_of_a_tie(zoo: Zoo, tmp_path: Path, kind: str, targets: list[str]) -> None:
    """Trained as one tensor they are one delta; the reference is PEFT's model, not merged."""
    base = zoo.models("llama-tied", "float32").base
    options: dict[str, Any] = {"target_modules": ["q_proj"], "ensure_weight_tying": True}
    options[kind] = [*options.get(kind, []), *targets]
    adapted = make_adapter(base, tmp_path, train=train_all, **options)
    model = DEMModel.from_pretrained(base, vectors={str(tmp_path): 1.0})
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, adapted(tokens).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_ends_of_a_tie_that_differ(zoo: Zoo, tmp_path: Path) -> None:
    base = zoo.models("llama-tied", "float32").base
    make_adapter(base, tmp_path, target_modules=["q_proj", "embed_tokens", "lm_head"])
    with pytest.raises(AdapterError, match="'lm_head' is one tensor with another embedding, and its LoRA is not that"):
        merge_one(base, tmp_path)
