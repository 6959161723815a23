"""Input statistics of real models, against hooks of the tests' own that keep every input whole."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.evaluation.likelihood import as_inputs, batches, likelihood
from dem_hub.evaluation.windows import Window
from dem_hub.hub.download import Resolved
from dem_hub.input_statistics import gathering
from dem_hub.input_statistics.gathering import gather, watching
from tests.support.tiny_models import VOCABULARY, Zoo


def windows(lengths: Sequence[int], seed: int = 0) -> list[Window]:
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randint(4, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [Window.of(row) for row in rows]


def opened(zoo: Zoo, family: str) -> tuple[Any, Base]:
    import transformers

    folder = zoo.models(family, "float32").base
    config = transformers.AutoConfig.from_pretrained(folder)
    model_class = getattr(transformers, config.architectures[0])
    return model_class.from_pretrained(folder), Base(Resolved.local(folder))


def all_inputs(model: Any, module: str, data: Sequence[Window]) -> Tensor:
    """Return every input of a linear layer, (T, D), one window at a time, so that there is no padding."""
    seen: list[Tensor] = []
    handle = model.get_submodule(module).register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for window in data:
            model(torch.tensor([window.input_ids]))
    handle.remove()
    return torch.cat(seen).double()


@pytest.mark.parametrize("family", ["llama-tied", "llama-untied", "gpt2", "bert"])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_the_moments_of_each_linear_layer(
    zoo: Zoo, family: str, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gathering, "RANK", 1000)  # whole, to be compared
    model, base = opened(zoo, family)
    data = windows([9, 4, 12, 7, 7])
    with watching(model, base.architecture) as watch, torch.no_grad():
        for places in batches(data, batch_size, model.config.vocab_size):
            inputs = as_inputs([data[place] for place in places], model.device)
            model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    statistics = watch.statistics("")
    assert statistics.tokens == 39
    linears = {key: module for key, module in base.architecture.modules.items() if module.kind != "embedding"}
    assert linears
    for key, module in linears.items():
        inputs = all_inputs(model, module.name, data)
        expected = inputs.T @ inputs / 39
        tolerance = 1e-5 * float(expected.abs().max())
        torch.testing.assert_close(statistics.moments[key].dense(), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("base_loss", [None, 5.0])
def test_windows_are_run_once_and_scored_on_the_way(zoo: Zoo, base_loss: float | None) -> None:
    model, base = opened(zoo, "llama-untied")
    data = windows([9, 4, 12])
    statistics = gather(model, base.architecture, data, 2, base_loss=base_loss)
    assert statistics.tokens == 25
    if base_loss is None:
        assert statistics.gain is None
    else:
        assert statistics.gain == pytest.approx(base_loss - likelihood(model, data).loss)


def test_layers_with_one_input_share_it(zoo: Zoo) -> None:
    model, base = opened(zoo, "llama-untied")
    statistics = gather(model, base.architecture, windows([5]))
    shared = {item.keys for item in statistics.inputs}
    attention = "model.layers.0.self_attn"
    assert tuple(f"{attention}.{name}_proj.weight" for name in "kqv") in shared
    assert (f"{attention}.o_proj.weight",) in shared
    assert ("model.layers.0.mlp.gate_proj.weight", "model.layers.0.mlp.up_proj.weight") in shared


@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe"])
def test_each_expert_has_its_own(zoo: Zoo, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gathering, "EXPERT_RANK", 1000)
    model, base = opened(zoo, family)
    data = windows([9, 6])
    statistics = gather(model, base.architecture, data)
    owner = min(base.architecture.fused).rpartition(".")[0]
    experts = model.get_submodule(owner)
    gates = base.architecture.fused[f"{owner}.gate_up_proj"][0]
    expected = [torch.zeros(32, 32, dtype=torch.float64) for _ in gates]

    def note(_: Any, args: tuple[Tensor, Tensor, Tensor]) -> None:
        hidden, chosen, _weights = args
        for row, of_token in zip(hidden.flatten(0, -2).double(), chosen.flatten(0, -2), strict=True):
            for expert in of_token.tolist():
                expected[expert] += torch.outer(row, row)

    handle = experts.register_forward_pre_hook(note)
    with torch.no_grad():
        for window in data:
            model(torch.tensor([window.input_ids]))
    handle.remove()
    for expert, key in enumerate(gates):
        if not expected[expert].any():
            assert key not in statistics.moments
            continue
        moments = statistics.moments[key].dense()
        scale = float(expected[expert].abs().max()) / 15
        torch.testing.assert_close(moments, expected[expert] / 15, rtol=0, atol=1e-4 * scale)
        down = key.replace("w1", "w2").replace("gate_proj", "down_proj")
        assert statistics.moments[down].size == base.checkpoint[down].shape[1]


def test_the_model_is_left_as_it_was(zoo: Zoo) -> None:
    model, base = opened(zoo, "mixtral")
    before = model.config._experts_implementation
    gather(model, base.architecture, windows([5]))
    assert model.config._experts_implementation == before
    assert not any(module._forward_pre_hooks for module in model.modules())
