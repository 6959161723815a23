"""The module of each key on disk, with and without the prefixes that checkpoints drop."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import save_file
from torch import Tensor

from dem_hub import DistributionVector
from dem_hub.checkpoints.architecture import Module, describe, memory_names
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_building import check_counts, model_class
from dem_hub.checkpoints.model_config import read_config, refuse_quantized, refuse_quantized_tensors
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.errors import CheckpointError
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import open_base_and_vectors
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


TEXT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


def vision_language(**config: Any) -> Any:
    """A Qwen2.5-VL, whose text config says nothing of ties on its own."""
    import transformers as t

    text = TEXT | {"rope_parameters": {"type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4,
              "out_hidden_size": 32, "fullatt_block_indexes": [0]}  # fmt: skip
    ids = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 58, "vision_end_token_id": 59,
           "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
    flag = config.pop("in_text", None)
    text |= {"bos_token_id": 1, "eos_token_id": 2} | ({} if flag is None else {"tie_word_embeddings": flag})
    return t.Qwen2_5_VLForConditionalGeneration(
        t.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids, **config)
    )


TIED: dict[str, Callable[[], Any]] = {
    "llama, tied": lambda: build("llama-tied"),
    "llama, untied": lambda: build("llama-untied"),
    "gpt2": lambda: build("gpt2"),
    "bert": lambda: build("bert"),
    "a VLM, tied": lambda: vision_language(tie_word_embeddings=True),
    "a VLM, tied, and its text config says no": lambda: vision_language(tie_word_embeddings=True, in_text=False),
    "a VLM, untied": lambda: vision_language(tie_word_embeddings=False),
    "a VLM, untied, and its text config says tied": lambda: vision_language(tie_word_embeddings=False, in_text=True),
}


@pytest.mark.filterwarnings("ignore")  # transformers warns of ties that the weights contradict
@pytest.mark.parametrize("written", ["as saved", "both, the same", "both, different"])
@pytest.mark.parametrize("make", TIED.values(), ids=TIED)
def test_tied_is_what_transformers_ties(tmp_path: Path, make: Callable[[], Any], written: str) -> None:
    """The reference is the model that transformers loads: which of its modules have one weight."""
    model = make()
    model.save_pretrained(tmp_path)
    tensors = load_tensors(tmp_path)
    if written != "as saved":
        state = model.state_dict()
        heads = [name for name in model.all_tied_weights_keys if name.endswith(".weight")]
        tensors |= {name: state[name].clone() for name in heads}
        for name in heads if written == "both, different" else []:
            tensors[name][0] += 1
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = type(model).from_pretrained(tmp_path)
    names: dict[int, list[str]] = {}
    for name, parameter in loaded.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name.removesuffix(".weight"))
    expected = {name for shared in names.values() if len(shared) > 1 for name in shared if not name.endswith(".bias")}
    found = opened(tmp_path).architecture
    assert found is not None
    assert found.tied == expected


@pytest.mark.usefixtures("hub")
def test_ties_of_a_base_on_the_hub_are_read_from_samples(llama: Models, tmp_path: Path) -> None:
    """Only a few bytes of the two tensors are fetched."""

    def write_out(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1

    base = reshard(llama.base, tmp_path / "base", change=write_out)
    HfApi().create_repo("ann/untied")
    HfApi().upload_folder(repo_id="ann/untied", folder_path=base)
    found = open_base_and_vectors(VectorSource("ann/untied"), {}, headers_only=True).base.architecture
    assert found is not None
    assert found.tied == frozenset()


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
    found = opened(base).architecture
    assert found is not None
    assert found == opened(llama.base).architecture  # transformers has a class of its own for this model
    edit_json(base / "config.json", model_type="wave")
    assert opened(base).architecture is None


def test_record_of_a_folder(llama: Models) -> None:
    base = opened(llama.base)
    assert (base.record.repo_id, base.record.commit, base.record.fingerprint) == (
        str(llama.base),
        None,
        base.fingerprint,
    )


FLOAT8 = torch.float8_e4m3fn
QUANTIZED: dict[str, tuple[dict[str, Tensor], bool]] = {
    "float8": ({"x.weight": torch.ones(4, 4).to(FLOAT8)}, True),
    "float8 and its scale": ({"x.weight": torch.ones(4, 4).to(FLOAT8), "x.weight_scale_inv": torch.ones(1, 1)}, True),
    "a scale beside a weight": ({"x.weight": torch.ones(4, 4), "x.weight_scale": torch.ones(4, 1)}, True),
    "int8": ({"x.weight": torch.ones(4, 4, dtype=torch.int8), "x.weight_scale": torch.ones(4, 1)}, True),
    "whole numbers as a weight": ({"x.weight": torch.ones(4, 4, dtype=torch.uint8)}, True),
    "one weight of whole numbers among floats": (
        {"x.weight": torch.ones(4, 4, dtype=torch.uint8), "y.weight": torch.ones(4, 4), "z.weight": torch.ones(4, 4)},
        True,
    ),
    "gptq": ({"x.qweight": torch.ones(4, 4, dtype=torch.int32), "x.scales": torch.ones(1, 4)}, True),
    "compressed-tensors": ({"x.weight_packed": torch.ones(4, 4, dtype=torch.int32)}, True),
    "bitsandbytes, 4 bits": ({"x.weight": torch.ones(8, 1, dtype=torch.uint8), "x.weight.absmax": torch.ones(1)}, True),
    "bitsandbytes, 8 bits": ({"x.weight": torch.ones(4, 4, dtype=torch.int8), "x.SCB": torch.ones(4)}, True),
    "mxfp4": (
        {
            "x.down_proj_blocks": torch.ones(2, 4, 4, dtype=torch.uint8),
            "x.down_proj_scales": torch.ones(2, 4, dtype=torch.uint8),
        },
        True,
    ),
    "hqq": ({"x.W_q": torch.ones(4, 4, dtype=torch.uint8), "x.scale": torch.ones(4, 1)}, True),
    "positions": ({"x.position_ids": torch.arange(4)[None], "x.weight": torch.ones(4, 4)}, False),
    "a mask": ({"attn.bias": torch.ones(1, 1, 4, 4, dtype=torch.uint8), "attn.masked_bias": torch.ones(())}, False),
    "a parameter that scales": ({"logit_scale": torch.ones(()), "x.layer_scale": torch.ones(4)}, False),
    "an index beside a scale": (
        {"x.relative_position_index": torch.ones(4, 4, dtype=torch.int64), "x.logit_scale": torch.ones(4, 1, 1)},
        False,
    ),
    "a count": ({"x.num_batches_tracked": torch.ones((), dtype=torch.int64), "x.weight": torch.ones(4)}, False),
}


@pytest.mark.parametrize(("tensors", "is_quantized"), QUANTIZED.values(), ids=QUANTIZED)
def test_quantized_tensors(tmp_path: Path, tensors: dict[str, Tensor], is_quantized: bool) -> None:
    """They are known without a word in the config, and buffers of whole numbers are not taken for them."""
    save_file(tensors, tmp_path / "model.safetensors")
    checkpoint = Checkpoint(tmp_path)
    if is_quantized:
        with pytest.raises(CheckpointError, match=r"The base '.*' is quantised \('x\..*such tensors\): the difference"):
            refuse_quantized_tensors(checkpoint, tmp_path, "base")
    else:
        refuse_quantized_tensors(checkpoint, tmp_path, "base")


def test_float8_is_refused_wherever_a_base_is_opened(llama: Models, tmp_path: Path) -> None:
    def quantize(tensors: dict[str, Tensor]) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        tensors[name] = tensors[name].to(FLOAT8)

    base = reshard(llama.base, tmp_path / "base", change=quantize)
    with pytest.raises(
        CheckpointError, match="The base .* is quantised .*'model.layers.0.mlp.up_proj.weight' is F8_E4"
    ):
        DistributionVector.extract(base, llama.full)
    with pytest.raises(CheckpointError, match="The fine-tune .* is quantised"):
        DistributionVector.extract(llama.base, base)
    with pytest.raises(CheckpointError, match="The base .* is quantised"):
        open_base_and_vectors(VectorSource(str(base)), {})


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
