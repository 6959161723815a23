"""The module of each key on disk, with and without the prefixes that checkpoints drop."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dem_hub.checkpoints.architecture import Module, check_counts, describe, memory_names, model_class
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import read_config, refuse_quantized
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.errors import CheckpointError
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from tests.support.tiny_models import FAMILIES, Models, Zoo, build, edit_json, load_tensors, reshard

EXPECTED = {
    "llama-tied": {
        "model.embed_tokens.weight": Module("model.embed_tokens", "embedding"),
        "model.layers.1.self_attn.k_proj.weight": Module("model.layers.1.self_attn.k_proj", "linear"),
        "model.norm.weight": None,
    },
    "llama-untied": {
        "lm_head.weight": Module("lm_head", "linear"),
        "model.layers.0.mlp.down_proj.weight": Module("model.layers.0.mlp.down_proj", "linear"),
    },
    "gpt2": {
        "transformer.wte.weight": Module("transformer.wte", "embedding"),
        "transformer.wpe.weight": Module("transformer.wpe", "embedding"),
        "transformer.h.0.attn.c_attn.weight": Module("transformer.h.0.attn.c_attn", "conv1d"),
        "transformer.h.0.attn.c_attn.bias": None,
        "transformer.ln_f.weight": None,
    },
    "bert": {
        "bert.embeddings.word_embeddings.weight": Module("bert.embeddings.word_embeddings", "embedding"),
        "bert.encoder.layer.0.attention.self.query.weight": Module(
            "bert.encoder.layer.0.attention.self.query", "linear"
        ),
        "cls.predictions.transform.dense.weight": Module("cls.predictions.transform.dense", "linear"),
        "cls.predictions.bias": None,
    },
}


def without_prefix(prefix: str, tensors: dict[str, Tensor]) -> None:
    for name in list(tensors):
        tensors[name.removeprefix(prefix)] = tensors.pop(name)


@pytest.mark.parametrize("family", FAMILIES)
def test_modules(zoo: Zoo, family: str) -> None:
    base = zoo.models(family).base
    found = describe(base, Checkpoint(base))
    assert {key: found.modules.get(key) for key in EXPECTED[family]} == EXPECTED[family]
    embeddings = {
        name for name, module in found.modules.items() if module.kind == "embedding" and module.name in found.tied
    }
    expected = {
        "llama-tied": "model.embed_tokens.weight",
        "gpt2": "transformer.wte.weight",
        "bert": "bert.embeddings.word_embeddings.weight",
    }
    assert embeddings == ({expected[family]} if family in expected else set())
    assert found.name == type(build(family)).__name__


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_is_a_parameter_or_buffer(zoo: Zoo, family: str) -> None:
    base = zoo.models(family).base
    found = describe(base, Checkpoint(base))
    assert set(found.parameters.values()) == set(load_tensors(base))
    state = build(family).state_dict()
    assert set(found.parameters) <= set(state)
    shapes = {name: info.shape for name, info in Checkpoint(base).items()}
    assert all(tuple(state[name].shape) == shapes[key] for name, key in found.parameters.items())


def test_gpt2_without_its_prefix(zoo: Zoo, tmp_path: Path) -> None:
    base = reshard(
        zoo.models("gpt2").base, tmp_path / "base", change=lambda tensors: without_prefix("transformer.", tensors)
    )
    found = describe(base, Checkpoint(base))
    assert found.modules["h.1.mlp.c_fc.weight"] == Module("transformer.h.1.mlp.c_fc", "conv1d")
    assert found.parameters["transformer.wte.weight"] == "wte.weight"
    assert len(found.modules) == len(describe(zoo.models("gpt2").base, Checkpoint(zoo.models("gpt2").base)).modules)


def test_experts_fused_in_memory_are_no_modules(zoo: Zoo) -> None:
    base = zoo.models("mixtral").base
    checkpoint = Checkpoint(base)
    experts = [key for key in checkpoint if ".experts." in key]
    found = describe(base, checkpoint)
    assert experts
    assert not set(experts) & set(found.modules)
    assert "model.layers.0.self_attn.q_proj.weight" in found.modules


def test_unknown_keys_are_left_out() -> None:
    assert memory_names(build("llama-tied"), ["model.norm.weight", "model.layers.9.mlp.up_proj.weight", "other"]) == {
        "model.norm.weight": "model.norm.weight"
    }


def test_buffers(zoo: Zoo, tmp_path: Path) -> None:
    def add_positions(tensors: dict[str, Tensor]) -> None:
        tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]

    base = reshard(zoo.models("bert").base, tmp_path / "base", change=add_positions)
    found = describe(base, Checkpoint(base))
    assert not found.buffers & set(found.modules)


def test_random_state_is_left_alone(llama: Models) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    describe(llama.base, Checkpoint(llama.base))
    assert torch.equal(torch.rand(2), expected)


def test_class_that_transformers_lacks(llama: Models, tmp_path: Path) -> None:
    from transformers import AutoConfig

    base = reshard(llama.base, tmp_path / "base")
    edit_json(base / "config.json", architectures=["LlamaForEverything"])
    with pytest.raises(
        CheckpointError, match=r"names the architectures \['LlamaForEverything'\].*AutoModel class of your task"
    ):
        model_class(AutoConfig.from_pretrained(base))


def opened(folder: Path) -> Base:
    return Base(resolve(VectorSource(str(folder)), MODEL_FILES))


def test_base_without_a_config_has_no_architecture(llama: Models, tmp_path: Path) -> None:
    base = reshard(llama.base, tmp_path / "base")
    (base / "config.json").unlink()
    assert read_config(base) == {}
    assert opened(base).architecture is None


def test_base_with_code_of_its_own_is_not_run(llama: Models, tmp_path: Path) -> None:
    base = reshard(llama.base, tmp_path / "base")
    edit_json(base / "config.json", auto_map={"AutoModelForCausalLM": "code.Model"})
    (base / "code.py").write_text("raise SystemExit('this code ran')")
    assert opened(base).architecture is None


def test_record_of_a_folder(llama: Models) -> None:
    base = opened(llama.base)
    assert (base.record.repo_id, base.record.commit, base.record.fingerprint) == (
        str(llama.base),
        None,
        base.fingerprint,
    )


def test_refuse_quantized(llama: Models, tmp_path: Path) -> None:
    refuse_quantized(llama.base, "base")
    base = reshard(llama.base, tmp_path / "base")
    edit_json(base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(
        CheckpointError,
        match=r"The base '.*' is quantised \(gptq\).*rounded weights.*Use the base in bf16, fp16 or fp32",
    ):
        refuse_quantized(base, "base")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 2**31}, "(?s)more layers or experts.*num_hidden_layers is 2147483648"),
        ({"text_config": {"num_local_experts": 10**6}}, "num_local_experts is 1000000"),
        ({"depths": [2, 10**9]}, "depths is 1000000000"),
        ({"architectures": ["pipeline"]}, r"names the architectures \['pipeline'\], and transformers .* no such class"),
        ({"architectures": ["AutoConfig"]}, "no such class"),
        ({"architectures": "LlamaForCausalLM"}, "names the architectures|cannot make a model"),
        ({"architectures": [5]}, "no such class|cannot make a model"),
        ({"model_type": "nothing"}, r"transformers cannot make a model of config.json of .*\(ValueError"),
        ({"hidden_size": "x"}, "transformers cannot make a model of config.json of"),
    ],
)
def test_configs_that_make_no_model(zoo: Zoo, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    folder = tmp_path / "base"
    shutil.copytree(zoo.models("llama-tied").base, folder)
    edit_json(folder / "config.json", **changes)
    with pytest.raises(CheckpointError, match=message):
        describe(folder, ["model.norm.weight"])


def test_sizes_and_ids_are_no_counts() -> None:
    config = {"block_size": 10**6, "layer_norm_eps": 1e-5, "expert_token_ids": [10**6], "num_hidden_layers": 5}
    check_counts(config, 3, "config.json")
    with pytest.raises(CheckpointError, match="num_experts is 1028"):
        check_counts({**config, "num_experts": 1028}, 3, "config.json")
