"""The bounds of a forward pass and of a block of a merge, compared with what torch really allocates for them."""

import gc
from typing import Any

import pytest
import torch

from dem_hub.evaluation import likelihood
from dem_hub.evaluation.likelihood import totals
from dem_hub.evaluation.windows import Window
from dem_hub.merging import merge as merge_module
from dem_hub.numerics.slices import full_index
from dem_hub.planning.bounds import block_bytes, cache_bytes, in_flight_on_accelerator, pass_bytes, quantized_bytes
from dem_hub.planning.facts import Facts, pass_shape
from tests.planning.test_placement import planned
from tests.support.allocations import Allocations
from tests.support.tiny_models import Zoo


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_a_forward_pass_takes_no_more(
    zoo: Zoo, family: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    base = zoo.models(family).base
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    windows = [Window.of(list(range(1, 61))) for _ in range(32)]
    # Less than a window at a time, as with a large vocabulary.
    monkeypatch.setattr(likelihood, "_PIECE_BYTES", 4 * model.config.vocab_size * 30)
    totals(model, windows[:1])
    gc.collect()
    with Allocations("cpu") as allocations:
        totals(model, windows, 32)
    bound = pass_bytes(32 * 60, dtype.itemsize, pass_shape(model.config, planned(base)))
    assert bound / 3 <= allocations.most <= bound


def round_without_values(result: Any, total: Any, product: Any, noise: Any) -> bool:
    """Sum and round as `round_into` does, without a look at the result, which has no values here."""
    if product is not None:
        product.added_to(total)
    result.copy_(total)
    return True


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("kinds", "decoded"), [(["lowrank"], 0), (["dense"], 1), (["dense", "short", "lowrank"], 2)])
def test_a_block_on_an_accelerator_takes_no_more(
    zoo: Zoo, monkeypatch: pytest.MonkeyPatch, dtype: str, kinds: list[str], decoded: int
) -> None:
    """It is merged on the device `meta`, which allocates as an accelerator does."""
    monkeypatch.setattr(merge_module, "round_into", round_without_values)
    model = planned(zoo.models("llama-untied", dtype).base, **{str(zoo.vector("llama-untied", dtype, kind)): 0.5 for kind in kinds})  # fmt: skip
    name = "model.layers.0.mlp.up_proj.weight"
    shape = model.merge.shape(name)
    device = torch.device("meta")
    with Allocations("meta") as allocations:
        result = model.merge.tensor(name, full_index(shape), device, torch.bfloat16)
    beside = allocations.most - result.nbytes
    bound = block_bytes(result.numel(), decoded)
    factors = len(kinds) * 40 * sum(shape)  # of rank 4: much in a matrix of 48 x 32, and nothing in one of 4096 x 4096
    assert Facts.of(model).decoded == decoded
    assert 0.6 * bound <= beside <= bound + factors


def test_arithmetic() -> None:
    """By hand: Llama 2 of 7B."""
    assert cache_bytes(32, 32, 128, 2) == 524_288
    assert quantized_bytes("4bit", 4096 * 4096, 4096) == 8 * 2**20 + 2**20 + 64
    assert quantized_bytes("8bit", 4096 * 4096, 4096) == 16 * 2**20 + 4 * 4096
    largest = 4 * 32_000 * 4096
    assert in_flight_on_accelerator(largest, 7, 0) == 3 * largest + 7
    assert in_flight_on_accelerator(largest, 7, 2) == 4 * 28 * 2**24 + 7
    assert in_flight_on_accelerator(largest, 7, 0, 4 * 11008 * 4096) == 4 * (13 * 2**24 + 4 * 11008 * 4096) + 7
