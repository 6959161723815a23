"""The model in training, read as a checkpoint: PEFT's changes are merged, and the model keeps its bits."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback

from dem_hub import DEMCallback, DistributionVector
from dem_hub.errors import AdapterError
from tests.support.tiny_models import Models, Zoo, reshard
from tests.support.training_runs import DENSE, LORA, adapted, arguments, assert_same_files, begin, rows, train

pytestmark = pytest.mark.usefixtures("without_matplotlib")


def other_methods() -> list[Any]:
    from peft import IA3Config, LNTuningConfig, LoHaConfig, LoraConfig, OSFConfig, VBLoRAConfig

    bank = VBLoRAConfig(r=2, num_vectors=4, vector_length=2, topk=2, target_modules=["q_proj"])  # shared by all layers
    return [
        pytest.param("llama-tied", LoraConfig(**LORA, use_dora=True), id="dora"),
        pytest.param(
            "llama-untied", LoraConfig(**LORA, use_dora=True, modules_to_save=["lm_head"]), id="dora and a head"
        ),
        pytest.param(
            "gpt2", LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True, lora_bias=True), id="a bias in B"
        ),
        pytest.param(
            "llama-tied", IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]), id="ia3"
        ),
        pytest.param("llama-tied", LoHaConfig(r=2, alpha=4, target_modules=["q_proj"]), id="loha"),
        pytest.param("llama-tied", LNTuningConfig(target_modules=["input_layernorm"]), id="norms"),
        pytest.param("llama-tied", LoraConfig(**LORA, trainable_token_indices=[5, 6]), id="tokens"),
        pytest.param("llama-tied", bank, id="a bank"),
        pytest.param("llama-tied", OSFConfig(target_modules=["q_proj"]), id="one that cannot unmerge"),
    ]


class Bits(TrainerCallback):
    """The bits of the model at each save."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seen.append({name: value.detach().clone() for name, value in kwargs["model"].state_dict().items()})


@pytest.mark.filterwarnings(
    "ignore:Adapter 'default'", "ignore:Unsupported layer type", "ignore:OSF does not support"
)  # PEFT's own doubts about rarer methods
@pytest.mark.parametrize(("family", "config"), other_methods())
def test_other_methods_are_merged(zoo: Zoo, tmp_path: Path, family: str, config: Any) -> None:
    """The vector is that of PEFT's own merge of a copy, and the model in training has the bits that it had."""
    base = zoo.models(family).base
    model = adapted(base, copy.deepcopy(config))
    before, callback, after = Bits(), DEMCallback(when="save", **DENSE), Bits()
    Trainer(model, arguments(tmp_path / "run"), train_dataset=rows(), callbacks=[before, callback, after]).train()
    assert len(before.seen) == len(after.seen) == 2
    for one, two in zip(before.seen, after.seen, strict=True):
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    copy.deepcopy(model).merge_and_unload().save_pretrained(tmp_path / "merged")
    assert_same_files(callback.vector, DistributionVector.extract(base, tmp_path / "merged", **DENSE))


def test_weights_that_are_trained_beside_a_lora(llama: Models, tmp_path: Path) -> None:
    """PEFT's checkpoint would lack them."""
    model = adapted(llama.base)
    model.get_base_model().model.norm.weight.requires_grad_(True)
    callback = DEMCallback(**DENSE)
    train(model, callback, tmp_path / "run")
    copy.deepcopy(model).merge_and_unload().save_pretrained(tmp_path / "merged")
    assert_same_files(callback.vector, DistributionVector.extract(llama.base, tmp_path / "merged", **DENSE))
    assert "model.norm.weight" in callback.vector.config.tensors  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")
@pytest.mark.parametrize(
    "changes",
    [{"target_modules": ["lm_head"]}, {"target_modules": ["embed_tokens"]}, {"layer_replication": [(0, 2), (1, 2)]}],
    ids=str,
)
def test_one_tensor_that_is_changed_in_two_ways(llama: Models, tmp_path: Path, changes: dict[str, Any]) -> None:
    """PEFT's merge would change both sides alike, and the model in training does not."""
    from peft import LoraConfig

    model = adapted(llama.base, LoraConfig(**{**LORA, **changes}))
    with pytest.raises(AdapterError, match="are one tensor of the base, and PEFT changes them differently"):
        begin(DEMCallback(), model, arguments(tmp_path))


def test_an_old_base(zoo: Zoo, tmp_path: Path) -> None:
    """`openai-community/gpt2` has no prefix and masks that transformers drops; the vector is on its names."""
    from transformers import GPT2LMHeadModel

    def age(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)
        tensors["h.0.attn.bias"] = torch.ones(1, 1, 64, 64).tril()

    base = reshard(zoo.models("gpt2").base, tmp_path / "base", change=age)
    model = GPT2LMHeadModel.from_pretrained(base)
    callback = DEMCallback(**DENSE)
    Trainer(model, arguments(tmp_path / "run"), train_dataset=rows(), callbacks=[callback]).train()
    model.save_pretrained(tmp_path / "tuned")
    assert_same_files(callback.vector, DistributionVector.extract(base, tmp_path / "tuned", **DENSE))
