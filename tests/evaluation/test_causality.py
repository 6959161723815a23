"""Models that see the tokens on both sides are found by what they do."""

from typing import Any

import pytest
import torch

from dem_hub.errors import ConfigError
from dem_hub.evaluation.causality import refuse_two_sided
from dem_hub.evaluation.likelihood import likelihood
from dem_hub.evaluation.windows import Window
from tests.support.families import FAMILIES, TEXT, build

WINDOWS = [[1, 1, 1], [3, 9, 11, 12, 13, 14, 20, 21]]


def trained(family: str) -> Any:
    """A model with weights of the size of trained ones: those of a new model hardly attend to another token."""
    model = build(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def unlisted(model: Any) -> Any:
    """The same model, of a class that transformers does not know."""
    model.__class__ = type("OwnLM", (type(model),), {})
    model.config.architectures = None
    return model


def passes(model: Any) -> list[int]:
    """Count the forward passes of a model from now on, by the tokens of each."""
    counted: list[int] = []

    def count(module: Any, args: Any, inputs: dict[str, Any]) -> None:
        counted.append(inputs["input_ids"].numel())

    model.register_forward_pre_hook(count, with_kwargs=True)
    return counted


TEXT_FAMILIES = [
    "llama", "gpt2", "gpt-oss", "qwen2", "qwen2-moe", "qwen3", "qwen3-moe", "qwen3.5", "gemma2", "gemma3-text", "mixtral",
    "olmoe", "phi3", "mamba",
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_causal_models_pass(family: str, dtype: torch.dtype) -> None:
    refuse_two_sided(unlisted(trained(family).to(dtype)), [Window.of(window) for window in WINDOWS])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_models_that_see_both_sides_are_refused(family: str, dtype: torch.dtype) -> None:
    model = unlisted(trained(family).to(dtype)).train()
    with pytest.raises(ConfigError, match=r"is a OwnLM, and .* changes with the tokens after it.* Give score="):
        likelihood(model, WINDOWS)
    assert model.training


def test_a_known_model_whose_config_turns_its_mask_off() -> None:
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = TEXT | {"head_dim": 8, "sliding_window": 8}
    one, both = (
        Gemma3ForCausalLM(Gemma3TextConfig(**sizes, use_bidirectional_attention=option)) for option in (False, True)
    )
    assert likelihood(one, WINDOWS).tokens == 9
    with pytest.raises(ConfigError, match="Gemma3ForCausalLM, and its prediction .*sees the tokens on both sides"):
        likelihood(both, WINDOWS)


def test_a_model_is_tried_once_and_a_known_one_never() -> None:
    own, known = unlisted(build("llama")), build("llama")
    of_own, of_known = passes(own), passes(known)
    for _ in range(2):
        losses = [likelihood(model, WINDOWS, batch_size=1).loss for model in (own, known)]
        assert losses[0] == losses[1]
    assert of_known == [8, 3] * 2
    assert of_own == [8, 8, *of_known]


@pytest.mark.parametrize("windows", [[[5]], [[5, 5, 5, 5]], []], ids=str)
def test_without_two_tokens_nothing_is_tried(windows: list[list[int]]) -> None:
    model = unlisted(build("bert"))
    counted = passes(model)
    refuse_two_sided(model, [Window.of(window) for window in windows])
    assert not counted


def test_all_families_of_text_are_tried() -> None:
    causal = {name for name, family in FAMILIES.items() if set(family.inputs()) == {"input_ids"}}
    assert causal - {"bert", "modernbert"} == set(TEXT_FAMILIES)
