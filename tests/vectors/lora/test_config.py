"""Adapters that are no plain sum of deltas: refused from their config, with every reason."""

from pathlib import Path
from typing import Any

import pytest

from dem_hub import DistributionVector
from dem_hub.errors import AdapterError
from tests.support.lora_merges import LINEAR, merge_one, train_all
from tests.support.tiny_models import Zoo, edit_json, make_adapter

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
    # PEFT ties what it knows by name, and `wte` is no such name.
    "tied embedding that PEFT does not tie": (
        "gpt2",
        {"target_modules": ["c_fc", "wte"], "ensure_weight_tying": True},
        "'transformer.wte' is one tensor with another embedding",
    ),
    "tied saved module that PEFT does not tie": (
        "gpt2",
        {"target_modules": ["c_fc"], "modules_to_save": ["wte"], "ensure_weight_tying": True},
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
