"""The choice of windows whose logits are kept, and the memory they take."""

import gc
from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM

from dem_hub.evaluation.windows import Window
from dem_hub.search.measure.logits import Block, choose_windows, keep_logits, parts_of, place_bytes, token_limit
from tests.support.allocations import Allocations
from tests.support.tiny_models import Models


def test_choose_windows() -> None:
    tokens = [5, 3, 8, 2, 7]
    assert choose_windows(tokens, 100) == [0, 1, 2, 3, 4]
    assert len(choose_windows(tokens, 0)) == 1
    chosen = [set(choose_windows(tokens, limit)) for limit in range(26)]
    assert all(smaller <= larger for smaller, larger in pairwise(chosen))
    assert all(sum(tokens[place] for place in places) <= max(limit, 8) for limit, places in enumerate(chosen))


def test_parts_of() -> None:
    assert parts_of([5, 3, 8, 2, 7], 10) == [[0, 1], [2, 3], [4]]
    assert parts_of([50, 3], 10) == [[0], [1]]
    assert parts_of([], 10) == []


def test_token_limit() -> None:
    assert token_limit(1000 * 100 * (8 + 2 * 3), 100, 3) == 1000
    assert token_limit(1, 100, 3) == 1


def test_logits_are_in_memory_once(llama: Models) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama.base).eval()
    windows = [Window.of(list(range(1, 31))) for _ in range(64)]
    keep_logits(model, windows[:1], [0], 1)
    gc.collect()
    with Allocations("cpu") as allocations:
        one_window, _ = keep_logits(model, windows[:1], [0], 1)
        at_most = allocations.most
        allocations.most = allocations.live
        totals, block = keep_logits(model, windows, range(64), 1)
    kept = block.center.nbytes + block.owners.nbytes + block.tokens.nbytes
    assert allocations.most <= kept + 3 * at_most
    assert block.center.shape == (64 * 29, model.config.vocab_size)
    assert totals.tolist() == one_window.tolist() * 64
    assert torch.equal(block.center[:29], block.center[-29:])
    assert block.owners.tolist() == [place for place in range(64) for _ in range(29)]


@pytest.mark.parametrize("vocabulary", [64, 64_000])
def test_a_block_takes_what_is_reckoned(vocabulary: int) -> None:
    block = Block.empty(10, vocabulary)
    moves = 3 * block.center.half().nbytes
    assert block.tokens.nbytes + block.center.nbytes + moves == 10 * place_bytes(vocabulary, 3)
