"""A lock admits one holder, in threads and processes, and nobody waits for it without an end."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dem_hub.errors import BusyError
from dem_hub.files.locks import locked


def refused(target: Path, seconds: float) -> bool:
    """Whether another thread does not get a lock within a time."""

    def take() -> None:
        with locked(target, seconds):
            pass

    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(take).exception()
    if error is not None:
        assert isinstance(error, BusyError)
        assert f"Another process is writing '{target}'" in str(error)
    return error is not None


def test_a_second_holder_is_refused_when_the_time_is_up(tmp_path: Path) -> None:
    target = tmp_path / "vector"
    start = time.monotonic()
    with locked(target):
        assert refused(target, 0.1)
    assert 0.1 <= time.monotonic() - start < 5
    assert not refused(target, 0.1)
    assert list(tmp_path.iterdir()) == []


def test_a_holder_goes_on(tmp_path: Path) -> None:
    target = tmp_path / "vector"
    with locked(target):
        with locked(target):
            pass
        assert refused(target, 0)
        with pytest.raises(BusyError), locked(target, 0):
            pass
    assert not refused(target, 0)


def test_a_vector_is_locked_with_its_store(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "vector_store.json").touch()
    with locked(tmp_path / "store" / "maths"):
        assert refused(tmp_path / "store", 0)
        assert [path.name for path in (tmp_path / "store").iterdir()] == ["vector_store.json"]


def test_threads_wait_for_each_other(tmp_path: Path) -> None:
    """A counter that is read and written without a lock of its own loses nothing."""
    counter = tmp_path / "counter"
    counter.write_text("0")

    def count() -> None:
        for _ in range(10):
            with locked(counter):
                value = int(counter.read_text())
                time.sleep(0.0005)
                counter.write_text(str(value + 1))

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.read_text() == "40"
    assert [path.name for path in tmp_path.iterdir()] == ["counter"]


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    target = tmp_path / "vector"
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with locked(target):
            os.write(write, b"x")
            signal.pause()
    os.read(read, 1)
    with pytest.raises(BusyError), locked(target, 0):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert (tmp_path / ".vector.lock").exists()
    with locked(target, 5):
        pass
    assert list(tmp_path.iterdir()) == []
