"""Scratch memory: one for each thread and use, and no trace of the mode that it was first asked for in."""

import mmap
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from dem_hub.numerics import buffers
from dem_hub.numerics.buffers import MAX_KEPT, decoded_memory, new_memory, reusing_memory, scratch

CPU = torch.device("cpu")


def address(memory: Tensor) -> int:
    return memory.untyped_storage().data_ptr()


def test_one_use_gets_the_same_memory_again() -> None:
    first = scratch("test", (4, 5), torch.float32, CPU)
    again = scratch("test", (2, 3), torch.float32, CPU)
    assert address(again) == address(first)
    assert again.shape == (2, 3)
    assert again.is_contiguous()


@pytest.mark.parametrize(("use", "dtype"), [("other", torch.float32), ("test", torch.int32)], ids=["use", "dtype"])
def test_another_use_or_dtype_gets_other_memory(use: str, dtype: torch.dtype) -> None:
    assert address(scratch("test", (4,), torch.float32, CPU)) != address(scratch(use, (4,), dtype, CPU))


def test_more_than_before_is_new_memory() -> None:
    small = scratch("growing", (4,), torch.float32, CPU)
    large = scratch("growing", (400,), torch.float32, CPU)
    assert large.shape == (400,)
    assert address(scratch("growing", (4,), torch.float32, CPU)) == address(large) != address(small)


def test_threads_do_not_share() -> None:
    mine = scratch("test", (8,), torch.float32, CPU).fill_(1)
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(lambda: scratch("test", (8,), torch.float32, CPU).fill_(2)).result()
    assert mine.tolist() == [1] * 8
    assert theirs.tolist() == [2] * 8


def test_inference_mode_leaves_no_mark() -> None:
    with torch.inference_mode():
        scratch("inference", (8,), torch.float32, CPU).fill_(1)
    assert scratch("inference", (8,), torch.float32, CPU).fill_(2).tolist() == [2] * 8


def test_a_lot_is_not_kept() -> None:
    lot = scratch("lot", (MAX_KEPT + 1,), torch.uint8, CPU)
    assert address(scratch("lot", (MAX_KEPT + 1,), torch.uint8, CPU)) != address(lot)


def test_large_memory_is_asked_for_in_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def record(start: Any, size: Any, advice: int) -> int:
        asked.append((start.value, size.value))
        return -1  # as where the system refuses

    monkeypatch.setattr(buffers, "_madvise", lambda: record)
    new_memory((100,), torch.float32, CPU)
    new_memory((3000, 3000), torch.float32, torch.device("meta"))
    assert not asked
    memory = new_memory((3000, 3001), torch.bfloat16, CPU).fill_(1)
    ((start, size),) = asked
    assert memory.data_ptr() <= start < start + size <= memory.data_ptr() + memory.nbytes
    assert memory.nbytes - size < 2 * mmap.PAGESIZE
    assert start % mmap.PAGESIZE == size % mmap.PAGESIZE == 0


@pytest.mark.parametrize("shape", [(), (3, 0), (3000, 3001)], ids=str)
def test_new_memory_is_that_of_torch(shape: tuple[int, ...]) -> None:
    memory = new_memory(shape, torch.float32, CPU)
    assert (memory.shape, memory.dtype, memory.is_contiguous()) == (shape, torch.float32, True)
    assert bool((memory.fill_(2) == 2).all())


def test_each_call_within_a_block_gets_its_own_memory_and_the_next_block_the_same() -> None:
    with reusing_memory():
        first, second = (decoded_memory((4, 5), torch.float32, CPU) for _ in range(2))
        assert address(first) != address(second)
    with reusing_memory():
        again = [
            address(decoded_memory(shape, dtype, CPU))
            for shape, dtype in [((3,), torch.int64), ((5, 4), torch.float32)]
        ]
    assert again == [address(first), address(second)]


def test_a_block_within_a_block_leaves_the_outer_one_alone() -> None:
    with reusing_memory():
        outer = decoded_memory((4,), torch.float32, CPU)
        with reusing_memory():
            inner = decoded_memory((4,), torch.float32, CPU)
        later = decoded_memory((4,), torch.float32, CPU)
    assert address(outer) != address(inner) == address(later)


def test_outside_of_blocks_and_after_an_error_memory_is_new() -> None:
    def fail() -> None:
        with reusing_memory():
            decoded_memory((4,), torch.float32, CPU)
            raise ValueError

    with pytest.raises(ValueError):
        fail()
    found = [decoded_memory((4,), torch.float32, CPU) for _ in range(3)]
    assert len({address(memory) for memory in found}) == 3
    with reusing_memory():
        assert address(decoded_memory((4,), torch.float32, CPU)) not in map(address, found)


def test_memory_of_a_block_can_be_written_outside_of_inference_mode() -> None:
    with torch.inference_mode(), reusing_memory():
        decoded_memory((1000,), torch.float32, CPU)
    with reusing_memory():
        decoded_memory((1000,), torch.float32, CPU).add_(1)


def test_what_is_large_is_not_kept_in_blocks() -> None:
    addresses = []
    for _ in range(2):
        with reusing_memory():
            memory = decoded_memory((MAX_KEPT + 1,), torch.uint8, CPU)
            addresses.append(memory)
    assert address(addresses[0]) != address(addresses[1])
