"""Threads of a pool see what the thread that made the pool has set."""

import os
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from threading import Barrier, Event, Thread

import pytest
import torch

from dem_hub.numerics.threads import in_order, one_core, take_context

SETTING: ContextVar[str] = ContextVar("setting", default="default")


def test_a_pool_takes_the_context_of_its_maker() -> None:
    token = SETTING.set("set here")
    try:
        with ThreadPoolExecutor(2) as pool:
            assert pool.submit(SETTING.get).result() == "default"
        with ThreadPoolExecutor(2, initializer=take_context, initargs=(copy_context(),)) as pool:
            assert list(pool.map(lambda _: SETTING.get(), range(4))) == ["set here"] * 4
    finally:
        SETTING.reset(token)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_may_be_given(threads: int) -> None:
    """As many tasks run at once as were asked for, whatever torch would use."""
    together = Barrier(threads)

    def task(number: int) -> int:
        together.wait(60)
        return number

    with one_core():
        assert list(in_order(task, range(2 * threads), threads)) == list(range(2 * threads))


def test_one_core_is_kept_where_a_program_forbids_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As vLLM does on a CPU, after it has bound torch's threads to cores."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: pytest.fail("This is vLLM's own."))
    threads = torch.get_num_threads()
    assert list(in_order(lambda _: torch.get_num_threads(), range(4), 2)) == [1] * 4
    with one_core():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system binds no thread to cores")
def test_a_caller_that_is_bound_to_a_core_binds_no_other_thread() -> None:
    """As vLLM's workers are, whose other threads are bound to the other cores."""
    cores = os.sched_getaffinity(0)
    first = min(cores)
    done = Event()
    others = Thread(target=done.wait)
    others.start()
    os.sched_setaffinity(0, {first})
    try:
        found = list(in_order(lambda _: os.sched_getaffinity(0), range(4), 2))
        assert os.sched_getaffinity(0) == {first}
    finally:
        os.sched_setaffinity(0, cores)
        done.set()
        others.join()
    assert found == [cores] * 4
