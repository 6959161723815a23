"""Threads of a pool see what the thread that made the pool has set."""

from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context

from dem_hub.numerics.threads import take_context

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
