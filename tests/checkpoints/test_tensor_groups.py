"""The layer of a tensor is read from its name, and layers are ordered by number."""

import pytest

from dem_hub.checkpoints.tensor_groups import layer_name, layer_number, layer_run, norms_by_layer


def test_the_layer_is_the_first_number() -> None:
    keys = {"h.11.attn.c_attn.weight": 11, "decoder.block.3.layer.0.SelfAttention.q.weight": 3, "lm_head.weight": None}
    keys[f"h.{'1' * 5000}.weight"] = None
    assert {key: layer_number(key) for key in keys} == keys


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("h.11.attn.c_attn.weight", "h.11"),
        ("model.layers.3.mlp.experts.7.w1.weight", "model.layers.3"),
        ("decoder.block.3.layer.0.SelfAttention.q.weight", "decoder.block.3"),
        ("0.weight", "0"),
        ("lm_head.weight", "lm_head.weight"),
    ],
)
def test_layer_name(key: str, name: str) -> None:
    assert layer_name(key) == name


@pytest.mark.parametrize(
    ("group", "run"),
    [
        ("layers 0-7", range(8)),
        ("layers 3-3", range(3, 4)),
        ("attention", None),
        ("layers 0-", None),
        ("layers 0-999999999", range(10**9)),
        (f"layers 0-{'9' * 5000}", None),
    ],
)
def test_layer_run(group: str, run: range | None) -> None:
    assert layer_run(group) == run


def test_layers_are_in_order() -> None:
    norms = norms_by_layer({"layers.10.a": 3.0, "layers.2.a": 3.0, "norm": 1.0, "layers.2.b": 4.0})
    assert norms == {"layers.2": 5.0, "layers.10": 3.0, "norm": 1.0}
    assert list(norms)[:2] == ["layers.2", "layers.10"]
