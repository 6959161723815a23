"""Adapters on the models that people merge today: tiny models of their real classes, tied and untied.

The reference is PEFT's model with the adapter beside the weights, not merged, in float64.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMModel

TEXT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
          "image_size": 16, "patch_size": 8}  # fmt: skip
BLOCKS = {
    "depth": 1,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 4,
    "out_hidden_size": 32,
}
IDS = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 58, "vision_end_token_id": 59}
HYBRID = {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
          "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
ROPE = {"rope_type": "default", "rope_theta": 1e4}
MROPE = {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2]}}
ATTENTION = ["q_proj", "v_proj", "o_proj"]


def qwen3(tied: bool) -> Any:
    import transformers as t

    return t.Qwen3ForCausalLM(t.Qwen3Config(**TEXT, head_dim=8, tie_word_embeddings=tied))


def qwen3_5(tied: bool) -> Any:
    import transformers as t

    return t.Qwen3_5ForCausalLM(t.Qwen3_5TextConfig(**TEXT, **HYBRID, tie_word_embeddings=tied))


def qwen2_5_vl(tied: bool) -> Any:
    import transformers as t

    vision = BLOCKS | {"fullatt_block_indexes": [0]}
    config = t.Qwen2_5_VLConfig(text_config=TEXT | MROPE, vision_config=vision, tie_word_embeddings=tied, **IDS)
    return t.Qwen2_5_VLForConditionalGeneration(config)


def qwen3_vl(tied: bool) -> Any:
    import transformers as t

    vision = BLOCKS | {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    text = TEXT | MROPE | {"head_dim": 8}
    config = t.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=tied, **IDS)
    return t.Qwen3VLForConditionalGeneration(config)


def gemma3(tied: bool) -> Any:
    import transformers as t

    config = t.Gemma3Config(
        text_config=t.Gemma3TextConfig(**TEXT, head_dim=8, sliding_window=8),
        vision_config=t.SiglipVisionConfig(**VISION),
        mm_tokens_per_image=4,
        image_token_index=5,
        tie_word_embeddings=tied,
    )
    return t.Gemma3ForConditionalGeneration(config)


def gemma4(tied: bool) -> Any:
    import transformers as t

    sizes = {"head_dim": 8, "global_head_dim": 8, "sliding_window": 8, "vocab_size_per_layer_input": 64,
             "hidden_size_per_layer_input": 8}  # fmt: skip
    return t.Gemma4ForCausalLM(t.Gemma4TextConfig(**TEXT, **sizes, tie_word_embeddings=tied))


def glm_4v(tied: bool) -> Any:
    import transformers as t

    rope = {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}}
    ids = {"image_token_id": 60, "video_token_id": 61, "image_start_token_id": 58, "image_end_token_id": 59,
           "video_start_token_id": 56, "video_end_token_id": 57}  # fmt: skip
    vision = BLOCKS | {"image_size": 16}
    config = t.Glm4vConfig(text_config=TEXT | rope, vision_config=vision, tie_word_embeddings=tied, **ids)
    return t.Glm4vForConditionalGeneration(config)


def mistral3(tied: bool) -> Any:
    import transformers as t

    config = t.Mistral3Config(
        text_config=t.MistralConfig(**TEXT, head_dim=8),
        vision_config=t.PixtralVisionConfig(**VISION, head_dim=8),
        image_token_index=5,
        tie_word_embeddings=tied,
    )
    return t.Mistral3ForConditionalGeneration(config)


def llama4(tied: bool) -> Any:
    import transformers as t

    sizes = {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 16}
    return t.Llama4ForCausalLM(t.Llama4TextConfig(**TEXT, **sizes, tie_word_embeddings=tied))


def olmoe(tied: bool) -> Any:
    import transformers as t

    return t.OlmoeForCausalLM(t.OlmoeConfig(**TEXT, num_experts=3, num_experts_per_tok=2, tie_word_embeddings=tied))


def gpt_oss(tied: bool) -> Any:
    import transformers as t

    sizes = {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8}
    return t.GptOssForCausalLM(t.GptOssConfig(**TEXT, **sizes, rope_parameters=ROPE, tie_word_embeddings=tied))


def phi3(tied: bool) -> Any:
    import transformers as t

    return t.Phi3ForCausalLM(t.Phi3Config(**TEXT, tie_word_embeddings=tied))


def modernbert(tied: bool) -> Any:
    import transformers as t

    config = t.ModernBertConfig(**TEXT, cls_token_id=1, sep_token_id=2, tie_word_embeddings=tied)
    return t.ModernBertForMaskedLM(config)


def whisper(tied: bool) -> Any:
    import transformers as t

    config = t.WhisperConfig(
        vocab_size=64, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, num_mel_bins=8, max_source_positions=8,
        max_target_positions=16, decoder_start_token_id=1, bos_token_id=1, eos_token_id=2, pad_token_id=0,
        tie_word_embeddings=tied,
    )  # fmt: skip
    return t.WhisperForConditionalGeneration(config)


# Each with the modules of its LoRA. In float64 the experts of the last three need the plain loop over experts, and
# PEFT wraps the router of Llama 4 in a way that the model cannot use.
FAMILIES: dict[str, tuple[Callable[[bool], Any], Any]] = {
    "qwen3": (qwen3, "all-linear"),
    "qwen3.5": (qwen3_5, "all-linear"),
    "qwen2.5-vl": (qwen2_5_vl, "all-linear"),
    "qwen3-vl": (qwen3_vl, "all-linear"),
    "gemma3": (gemma3, "all-linear"),
    "gemma4": (gemma4, "all-linear"),
    "glm-4v": (glm_4v, "all-linear"),
    "mistral3": (mistral3, "all-linear"),
    "phi3": (phi3, "all-linear"),
    "modernbert": (modernbert, "all-linear"),
    "whisper": (whisper, "all-linear"),
    "llama4": (llama4, ATTENTION),
    "olmoe": (olmoe, ATTENTION),
    "gpt-oss": (gpt_oss, ATTENTION),
}
EXPERTS = ("olmoe", "gpt-oss")


def inputs(family: str) -> dict[str, torch.Tensor]:
    ids = torch.arange(6, 12)[None]
    if family == "whisper":
        features = torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0)).double()
        return {"input_features": features, "decoder_input_ids": ids}
    return {"input_ids": ids}


@pytest.mark.filterwarnings("ignore")  # of PEFT and transformers, about sizes that no real model has
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize(
    ("family", "make", "targets"), [(name, *case) for name, case in FAMILIES.items()], ids=FAMILIES
)
def test_an_adapter_as_peft_applies_it(
    tmp_path: Path, family: str, make: Callable[[bool], Any], targets: Any, tied: bool
) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = make(tied)
    model.save_pretrained(tmp_path / "base")
    options = {"experts_implementation": "eager"} if family in EXPERTS else {}
    base = type(model).from_pretrained(tmp_path / "base", dtype=torch.float32, **options)
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=targets))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.05)
    adapted.save_pretrained(tmp_path / "adapter")
    vectors = {str(tmp_path / "adapter"): 1.0}
    ours = DEMModel.from_pretrained(tmp_path / "base", vectors=vectors, dtype=torch.float64, **options).eval()
    with torch.no_grad():
        expected = adapted.double().eval()(**inputs(family)).logits
        with adapted.disable_adapter():
            unchanged = adapted(**inputs(family)).logits
        found = ours(**inputs(family)).logits
    assert (expected - unchanged).abs().max() > 1e-2
    # Gemma computes its norms in float32, whatever the model's dtype is.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
