"""A tiny model of each architecture that the documentation lists as tested, tied and untied, with an input for it.

A model has two layers where it has a choice of layers, and its input reaches all of its parts: the vision tower of a
model that reads images, and both experts of a layer. `FAMILIES` is what `docs/limits.md` lists.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TEXT = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
          "image_size": 16, "patch_size": 8}  # fmt: skip
# A vision tower of Qwen and GLM, and the ids of its tokens.
BLOCKS = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 4, "patch_size": 4,
          "out_hidden_size": 32}  # fmt: skip
IDS = {"image_token_id": 60, "video_token_id": 61, "vision_start_token_id": 58, "vision_end_token_id": 59}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
MROPE = {"rope_parameters": ROPE | {"mrope_section": [1, 1, 2]}}
MOE = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}


@dataclass(frozen=True)
class Family:
    """An architecture: its name in the documentation, how to make a tiny model of it, and an input for the model.

    `make` takes whether the embeddings are tied, and `ties` has what they can be.
    """

    title: str
    make: Callable[[bool], Any]
    make_inputs: Callable[[], dict[str, Tensor]]
    ties: tuple[bool, ...] = (True, False)

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Return an input, with images and sounds in the dtype of a model."""
        inputs = self.make_inputs()
        return {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


def llama(tied: bool) -> Any:
    import transformers as t

    return t.LlamaForCausalLM(t.LlamaConfig(**TEXT, tie_word_embeddings=tied))


def gpt2(tied: bool) -> Any:
    import transformers as t

    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    return t.GPT2LMHeadModel(
        t.GPT2Config(vocab_size=64, **sizes, bos_token_id=1, eos_token_id=2, tie_word_embeddings=tied)
    )


def bert(tied: bool) -> Any:
    import transformers as t

    return t.BertForMaskedLM(t.BertConfig(**without_groups(), tie_word_embeddings=tied))


def without_groups() -> dict[str, int]:
    """Return the sizes of a text model without grouped attention."""
    return {name: value for name, value in TEXT.items() if name != "num_key_value_heads"}


def qwen2(tied: bool) -> Any:
    import transformers as t

    return t.Qwen2ForCausalLM(t.Qwen2Config(**TEXT, tie_word_embeddings=tied))


def qwen2_moe(tied: bool) -> Any:
    import transformers as t

    sizes = MOE | {"shared_expert_intermediate_size": 40}
    return t.Qwen2MoeForCausalLM(t.Qwen2MoeConfig(**TEXT, **sizes, tie_word_embeddings=tied))


def qwen3(tied: bool) -> Any:
    import transformers as t

    return t.Qwen3ForCausalLM(t.Qwen3Config(**TEXT, head_dim=8, tie_word_embeddings=tied))


def qwen3_moe(tied: bool) -> Any:
    import transformers as t

    return t.Qwen3MoeForCausalLM(t.Qwen3MoeConfig(**TEXT, **MOE, head_dim=8, tie_word_embeddings=tied))


def qwen3_5(tied: bool) -> Any:
    import transformers as t

    hybrid = {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8,
              "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"]}  # fmt: skip
    return t.Qwen3_5ForCausalLM(t.Qwen3_5TextConfig(**TEXT, **hybrid, tie_word_embeddings=tied))


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


def gemma2(tied: bool) -> Any:
    import transformers as t

    return t.Gemma2ForCausalLM(t.Gemma2Config(**TEXT, head_dim=8, sliding_window=8, tie_word_embeddings=tied))


def gemma3_text(tied: bool) -> Any:
    import transformers as t

    return t.Gemma3ForCausalLM(t.Gemma3TextConfig(**TEXT, head_dim=8, sliding_window=8, tie_word_embeddings=tied))


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

    text = {"head_dim": 8, "global_head_dim": 8, "sliding_window": 8, "vocab_size_per_layer_input": 64,
            "hidden_size_per_layer_input": 8}  # fmt: skip
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4,
              "num_key_value_heads": 4, "head_dim": 8, "patch_size": 4, "pooling_kernel_size": 2,
              "position_embedding_size": 16}  # fmt: skip
    ids = {"image_token_id": 60, "video_token_id": 61, "audio_token_id": 59, "boi_token_id": 58, "eoi_token_id": 57,
           "boa_token_id": 56, "eoa_token_index": 55}  # fmt: skip
    config = t.Gemma4Config(text_config=TEXT | text, vision_config=vision, tie_word_embeddings=tied, **ids)
    return t.Gemma4ForConditionalGeneration(config)


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
        vision_config=t.PixtralVisionConfig(**VISION | {"image_size": 32}, head_dim=8),
        image_token_index=5,
        tie_word_embeddings=tied,
    )
    return t.Mistral3ForConditionalGeneration(config)


def mixtral(tied: bool) -> Any:
    import transformers as t

    sizes = {"num_local_experts": 3, "num_experts_per_tok": 2}
    return t.MixtralForCausalLM(t.MixtralConfig(**TEXT, **sizes, tie_word_embeddings=tied))


def llama4(tied: bool) -> Any:
    import transformers as t
    from transformers.models.llama4 import modeling_llama4

    # Without it `Llama4ForConditionalGeneration` of transformers 5.24 cannot run at all: it asks the output of its text
    # model for an attribute that this output does not have.
    modeling_llama4.MoeCausalLMOutputWithPast.image_outputs = None
    text = {"head_dim": 8, "intermediate_size_mlp": 48, "num_local_experts": 2, "attention_chunk_size": 16,
            "interleave_moe_layer_step": 2}  # fmt: skip
    vision = VISION | {"pixel_shuffle_ratio": 0.5, "vision_output_dim": 32, "projector_input_dim": 32,
                       "projector_output_dim": 32, "intermediate_size": 128}  # fmt: skip
    config = t.Llama4Config(
        text_config=TEXT | text | {"tie_word_embeddings": tied}, vision_config=vision, image_token_index=5,
        boi_token_index=6, eoi_token_index=7,
    )  # fmt: skip
    return t.Llama4ForConditionalGeneration(config)


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

    config = t.ModernBertConfig(**without_groups(), cls_token_id=1, sep_token_id=2, tie_word_embeddings=tied)
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


def t5(tied: bool) -> Any:
    import transformers as t

    sizes = {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    model = t.T5ForConditionalGeneration(t.T5Config(**sizes, decoder_start_token_id=0, tie_word_embeddings=tied))
    if not tied:
        # transformers 5 ties it whatever the config says, but not where a checkpoint has a head of its own, as
        # FLAN-T5's.
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone() + 0.1)
    return model


def vit(tied: bool) -> Any:
    import transformers as t

    return t.ViTForImageClassification(t.ViTConfig(**VISION, num_labels=3))


def mamba(tied: bool) -> Any:
    import transformers as t

    sizes = {"vocab_size": 64, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2}
    return t.MambaForCausalLM(t.MambaConfig(**sizes, tie_word_embeddings=tied))


def llava(tied: bool) -> Any:
    import transformers as t

    config = t.LlavaConfig(
        vision_config=t.CLIPVisionConfig(**VISION | {"num_hidden_layers": 2}),
        text_config=t.LlamaConfig(**TEXT),
        image_token_index=5,
        image_seq_length=4,
        tie_word_embeddings=tied,
    )
    return t.LlavaForConditionalGeneration(config)


def ids(*image: int) -> Tensor:
    """Return the ids of a short text, with the tokens of an image in it."""
    return torch.tensor([[1, 9, *image, 11, 12, 13, 14]])


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def text_inputs() -> dict[str, Tensor]:
    return {"input_ids": ids()}


def seq2seq_inputs() -> dict[str, Tensor]:
    return {"input_ids": ids(), "decoder_input_ids": torch.tensor([[0, 3, 4]])}


def sound_inputs() -> dict[str, Tensor]:
    return {"input_features": random(1, 8, 16), "decoder_input_ids": ids()}


def image_inputs() -> dict[str, Tensor]:
    return {"pixel_values": random(1, 3, 16, 16)}


def picture_inputs() -> dict[str, Tensor]:
    """Return a text with an image of four tokens."""
    return {"input_ids": ids(5, 5, 5, 5), "pixel_values": random(1, 3, 16, 16)}


def mistral3_inputs() -> dict[str, Tensor]:
    """Return a text with an image of 4 times 2 patches, which are two tokens."""
    return {"input_ids": ids(5, 5), "pixel_values": random(1, 3, 32, 16), "image_sizes": torch.tensor([[32, 16]])}


def llama4_inputs() -> dict[str, Tensor]:
    return {"input_ids": ids(6, 5, 7), "pixel_values": random(1, 3, 16, 16)}


def patch_inputs() -> dict[str, Tensor]:
    """Return a text with an image of 4 times 4 patches, each 2 * 4 * 4 pixels, which are four tokens."""
    text = ids(58, 60, 60, 60, 60, 59)
    return {
        "input_ids": text,
        "mm_token_type_ids": (text == 60).long(),
        "pixel_values": random(16, 3 * 2 * 4 * 4),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
    }


def gemma4_inputs() -> dict[str, Tensor]:
    """Return a text with an image of 4 times 4 patches, which are four tokens."""
    text = ids(58, 60, 60, 60, 60, 57)
    places = torch.cartesian_prod(torch.arange(4), torch.arange(4))[None]
    return {
        "input_ids": text,
        "mm_token_type_ids": (text == 60).long(),
        "pixel_values": random(1, 16, 3 * 4 * 4).sigmoid(),
        "image_position_ids": places,
    }


FAMILIES = {
    "llama": Family("Llama", llama, text_inputs),
    "llama4": Family("Llama 4", llama4, llama4_inputs),
    "gpt2": Family("GPT-2", gpt2, text_inputs),
    "gpt-oss": Family("gpt-oss", gpt_oss, text_inputs),
    "qwen2": Family("Qwen2", qwen2, text_inputs),
    "qwen2-moe": Family("Qwen2-MoE", qwen2_moe, text_inputs),
    "qwen2.5-vl": Family("Qwen2.5-VL", qwen2_5_vl, patch_inputs),
    "qwen3": Family("Qwen3", qwen3, text_inputs),
    "qwen3-moe": Family("Qwen3-MoE", qwen3_moe, text_inputs),
    "qwen3-vl": Family("Qwen3-VL", qwen3_vl, patch_inputs),
    "qwen3.5": Family("Qwen3.5 (hybrid attention)", qwen3_5, text_inputs),
    "gemma2": Family("Gemma 2", gemma2, text_inputs),
    "gemma3-text": Family("Gemma 3 (text only)", gemma3_text, text_inputs),
    "gemma3": Family("Gemma 3", gemma3, picture_inputs),
    "gemma4": Family("Gemma 4", gemma4, gemma4_inputs),
    "mistral3": Family("Mistral 3", mistral3, mistral3_inputs),
    "mixtral": Family("Mixtral", mixtral, text_inputs),
    "glm-4v": Family("GLM-4V", glm_4v, patch_inputs),
    "olmoe": Family("OLMoE", olmoe, text_inputs),
    "phi3": Family("Phi-3", phi3, text_inputs),
    "mamba": Family("Mamba", mamba, text_inputs),
    "llava": Family("LLaVA", llava, picture_inputs),
    "bert": Family("BERT", bert, text_inputs),
    "modernbert": Family("ModernBERT", modernbert, text_inputs),
    "t5": Family("T5", t5, seq2seq_inputs),
    "whisper": Family("Whisper", whisper, sound_inputs),
    "vit": Family("ViT", vit, image_inputs, ties=(False,)),
}


def build(name: str, tied: bool | None = None) -> Any:
    """Return a tiny model of a family in float32, seeded by its name."""
    family = FAMILIES[name]
    torch.manual_seed(sum(map(ord, name)))
    return family.make(family.ties[0] if tied is None else tied)
