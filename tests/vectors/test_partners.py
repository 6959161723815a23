"""Bases and fine-tunes whose tensors have other names, or that have tensors which transformers drops.

The reference is transformers: the fine-tune that it loads from the fine-tune's folder, and from base + vector.
"""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dem_hub import DEMModel, DistributionVector
from dem_hub.errors import CheckpointError
from tests.support.tiny_models import build, load_tensors, shake

TEXT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
          "image_size": 16, "patch_size": 8}  # fmt: skip

Tensors = dict[str, Tensor]


def llava() -> Any:
    import transformers as t

    torch.manual_seed(0)
    return t.LlavaForConditionalGeneration(
        t.LlavaConfig(
            text_config=t.LlamaConfig(**TEXT),
            vision_config=t.CLIPVisionConfig(**VISION),
            image_token_index=5,
            image_seq_length=4,
        )
    )


def qwen3_5() -> Any:
    import transformers as t

    torch.manual_seed(0)
    text = TEXT | {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
                   "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4,
              "out_hidden_size": 32, "num_position_embeddings": 16}  # fmt: skip
    ids = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 58, "vision_end_token_id": 59}
    return t.Qwen3_5ForConditionalGeneration(t.Qwen3_5Config(text_config=text, vision_config=vision, **ids))


def without_prefix(tensors: Tensors) -> Tensors:
    return {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}


def with_masks(tensors: Tensors) -> Tensors:
    return without_prefix(tensors) | {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64).tril() for layer in range(2)}


def gamma_and_beta(tensors: Tensors) -> Tensors:
    renamed = {}
    for name, tensor in tensors.items():
        renamed[name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")] = (
            tensor
        )
    return renamed


def next_sentence_head(tensors: Tensors) -> Tensors:
    return gamma_and_beta(tensors) | {"cls.seq_relationship.weight": torch.ones(2, 32)}


def frequencies(tensors: Tensors) -> Tensors:
    return tensors | {f"model.layers.{layer}.self_attn.rotary_emb.inv_freq": torch.rand(4) for layer in range(2)}


def multi_token_prediction(tensors: Tensors) -> Tensors:
    return tensors | {"mtp.layers.0.mlp.up_proj.weight": torch.rand(48, 32), "mtp.norm.weight": torch.ones(32)}


def same(tensors: Tensors) -> Tensors:
    return tensors


OLD: dict[str, tuple[Callable[[], Any], Callable[[Tensors], Tensors], int]] = {
    "gpt2 without its prefix": (lambda: build("gpt2"), without_prefix, 0),
    "openai-community/gpt2": (lambda: build("gpt2"), with_masks, 2),
    "bert with gamma and beta": (lambda: build("bert"), gamma_and_beta, 0),
    "bert-base-uncased": (lambda: build("bert"), next_sentence_head, 1),
    "llama with frequencies": (lambda: build("llama-tied"), frequencies, 2),
    "multi-token prediction": (lambda: build("llama-untied"), multi_token_prediction, 2),
    "a VLM": (llava, same, 0),
}


def save(model: Any, folder: Path, change: Callable[[Tensors], Tensors], *, from_memory: bool = False) -> None:
    model.save_pretrained(folder)
    tensors = load_tensors(folder)
    if from_memory:
        tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    save_file(change(tensors), folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("saved", ["by transformers", "under the names in memory"])
@pytest.mark.parametrize(("make", "change", "carried"), OLD.values(), ids=OLD)
def test_old_bases(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    make: Callable[[], Any],
    change: Callable[[Tensors], Tensors],
    carried: int,
    saved: str,
) -> None:
    """A fine-tune that transformers reads is paired as transformers pairs it, and the merge is that fine-tune."""
    model = make()
    save(model, tmp_path / "base", change)
    base = load_tensors(tmp_path / "base")
    shake(model, 1)
    save(model, tmp_path / "tuned", same, from_memory=saved == "under the names in memory")
    with caplog.at_level(logging.WARNING, "dem_hub"):
        vector = DistributionVector.extract(tmp_path / "base", tmp_path / "tuned", codec="dense", dtype="float32")
    lines = [record.message for record in caplog.records if "stay as the base has them" in record.message]
    assert [int(line.split()[0]) for line in lines] == ([carried] if carried else [])
    assert vector.config is not None
    assert len(vector.config.tensors) == len(base) - carried
    vector.save_pretrained(tmp_path / "vector")
    ours = DEMModel.from_pretrained(tmp_path / "base", vectors={str(tmp_path / "vector"): 1.0})
    theirs = type(model).from_pretrained(tmp_path / "tuned").state_dict()
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_text_model_of_a_vlm(tmp_path: Path, kind: str) -> None:
    """What `AutoModelForCausalLM` makes of such a base is trained alone; the reference is PEFT's unmerged model."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    qwen3_5().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert type(model).__name__ == "Qwen3_5ForCausalLM"
    options = {"r": 4, "target_modules": ["q_proj", "down_proj"], "init_lora_weights": False}
    adapted = get_peft_model(model, LoraConfig(**options)).eval()
    adapted.save_pretrained(tmp_path / "vector")
    ids = torch.arange(1, 11)[None]
    with torch.no_grad():
        expected = adapted(input_ids=ids).logits
    if kind == "full":
        adapted.merge_and_unload().save_pretrained(tmp_path / "tuned")
        vector = DistributionVector.extract(tmp_path / "base", tmp_path / "tuned", codec="dense", dtype="float32")
        vector.save_pretrained(tmp_path / "full")
    folder = tmp_path / ("full" if kind == "full" else "vector")
    merged = DEMModel.from_pretrained(tmp_path / "base", vectors={str(folder): 1.0})
    with torch.no_grad():
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_what_the_model_needs_is_never_dropped(tmp_path: Path) -> None:
    """A fine-tune with fewer layers, or with a head of its own, has no vector on this base."""
    import transformers as t

    base = t.LlamaForCausalLM(t.LlamaConfig(**TEXT))
    base.save_pretrained(tmp_path / "base")
    t.LlamaForCausalLM(t.LlamaConfig(**TEXT | {"num_hidden_layers": 1})).save_pretrained(tmp_path / "pruned")
    with pytest.raises(CheckpointError, match="'model.layers.1.input_layernorm.weight' .* is in the base only"):
        DistributionVector.extract(tmp_path / "base", tmp_path / "pruned")
    t.LlamaForSequenceClassification(t.LlamaConfig(**TEXT, num_labels=3)).save_pretrained(tmp_path / "head")
    with pytest.raises(CheckpointError, match="'score.weight' .* is in the fine-tune only"):
        DistributionVector.extract(tmp_path / "base", tmp_path / "head")


def llama_config(tied: bool) -> Any:
    import transformers as t

    return t.LlamaConfig(**TEXT, tie_word_embeddings=tied)


def bert_config() -> Any:
    return build("bert").config


def t5_config() -> Any:
    import transformers as t

    return t.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0)


# The classes of the base and of the fine-tune, a config of both, and how many tensors the base alone has.
FEWER: dict[str, tuple[str, str, Any, int]] = {
    "llama without a head": ("LlamaForCausalLM", "LlamaModel", lambda: llama_config(tied=False), 1),
    "llama without a tied head": ("LlamaForCausalLM", "LlamaModel", lambda: llama_config(tied=True), 0),
    "a tied head for llama": ("LlamaModel", "LlamaForCausalLM", lambda: llama_config(tied=True), 0),
    "gpt2 without a head": ("GPT2LMHeadModel", "GPT2Model", lambda: build("gpt2").config, 0),
    "a head for gpt2": ("GPT2Model", "GPT2LMHeadModel", lambda: build("gpt2").config, 0),
    "bert without a classifier": ("BertForSequenceClassification", "BertModel", bert_config, 2),
    "t5 without a decoder": ("T5ForConditionalGeneration", "T5EncoderModel", t5_config, 28),
    "t5 without a head": ("T5ForConditionalGeneration", "T5Model", t5_config, 0),
}


@pytest.mark.parametrize(("base", "finetuned", "config", "carried"), FEWER.values(), ids=FEWER)
def test_a_fine_tune_with_another_head(
    tmp_path: Path, base: str, finetuned: str, config: Callable[[], Any], carried: int
) -> None:
    """What both have is the fine-tune's, as the fine-tune's own class reads it. The base's head stays."""
    import transformers as t

    torch.manual_seed(0)
    getattr(t, base)(config()).save_pretrained(tmp_path / "base")
    tuned = getattr(t, finetuned).from_pretrained(tmp_path / "base")
    shake(tuned, 1)
    tuned.save_pretrained(tmp_path / "tuned")
    vector = DistributionVector.extract(tmp_path / "base", tmp_path / "tuned", codec="dense", dtype="float32")
    assert vector.config is not None
    assert len(load_tensors(tmp_path / "base")) - len(vector.config.tensors) == carried
    vector.save_pretrained(tmp_path / "vector")
    model = DEMModel.from_pretrained(tmp_path / "base", vectors={str(tmp_path / "vector"): 1.0})
    assert type(model).__name__ == base
    model.dem.save_pretrained(tmp_path / "recipe")
    found = getattr(t, finetuned).from_pretrained(tmp_path / "recipe").state_dict()
    for name, tensor in tuned.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("base", "finetuned", "config", "named"),
    [
        ("LlamaModel", "LlamaForCausalLM", lambda: llama_config(tied=False), "lm_head.weight"),
        ("LlamaForCausalLM", "LlamaForSequenceClassification", lambda: llama_config(tied=True), "score.weight"),
        ("BertModel", "BertForMaskedLM", bert_config, "cls.predictions.bias"),
        ("BertForMaskedLM", "BertModel", bert_config, "pooler.dense.bias"),
        ("T5EncoderModel", "T5ForConditionalGeneration", t5_config, "decoder.final_layer_norm.weight"),
    ],
)
def test_a_head_that_the_base_lacks(
    tmp_path: Path, base: str, finetuned: str, config: Callable[[], Any], named: str
) -> None:
    import transformers as t

    getattr(t, base)(config()).save_pretrained(tmp_path / "base")
    getattr(t, finetuned).from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "tuned")
    message = rf"(?s)'{named}' .* is in the fine-tune only.*'{base}'.* in the base and .*'{finetuned}'"
    with pytest.raises(CheckpointError, match=message):
        DistributionVector.extract(tmp_path / "base", tmp_path / "tuned")
