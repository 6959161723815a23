"""The bound of a forward pass, compared with what torch really allocates in one."""

import gc
import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dem_hub.evaluation.likelihood import totals
from dem_hub.evaluation.windows import Window
from dem_hub.planning.bounds import cache_bytes, pass_bytes, quantized_bytes
from dem_hub.planning.facts import pass_shape
from tests.planning.test_placement import planned
from tests.support.tiny_models import Zoo


class Allocations(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, as long as they live, and the most of them."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if torch.is_tensor(leaf)}
        for leaf in tree_leaves(result):
            if torch.is_tensor(leaf) and leaf.untyped_storage().data_ptr() not in self.known | given:
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: Any) -> None:
        pointer, nbytes = storage.data_ptr(), storage.nbytes()
        self.known.add(pointer)
        self.live += nbytes
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._forget, pointer, nbytes)

    def _forget(self, pointer: int, nbytes: int) -> None:
        self.known.discard(pointer)
        self.live -= nbytes


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("family", ["llama-tied", "gpt2"])
def test_a_forward_pass_takes_no_more(zoo: Zoo, family: str, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    base = zoo.models(family).base
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype).eval()
    windows = [Window.of(list(range(1, 61))) for _ in range(32)]
    totals(model, windows[:1])
    gc.collect()
    with Allocations() as allocations:
        totals(model, windows, 32)
    bound = pass_bytes(32 * 60, dtype.itemsize, pass_shape(model.config, planned(base)))
    assert bound / 3 <= allocations.most <= bound


def test_arithmetic() -> None:
    """By hand: Llama 2 of 7B."""
    assert cache_bytes(32, 32, 128, 2) == 524_288
    assert quantized_bytes("4bit", 4096 * 4096, 4096) == 8 * 2**20 + 2**20 + 64
    assert quantized_bytes("8bit", 4096 * 4096, 4096) == 16 * 2**20 + 4 * 4096
