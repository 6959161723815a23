"""How passes are compiled, and kept; what the passes of `kernels` compute is tested with `rounding`."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from numba import float64, void
from tqdm import tqdm

from dem_hub.numerics import compilation
from dem_hub.numerics.compilation import CompiledPass, _announced, _compile, _say


def test_compiles_where_nothing_can_be_kept() -> None:
    """As in an installation that is read-only, for a user without a home: numba finds no folder for code that is in no file."""
    namespace: dict[str, Any] = {}
    exec("def twice(number):\n    return 2 * number", namespace)
    signature = numba.int64(numba.int64)
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(signature, cache=True)(namespace["twice"])
    assert _compile(namespace["twice"], signature)(21) == 42


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "zeros": lambda _: b"\0" * 300,
    "other bytes": lambda _: bytes(range(250, 6, -1)),
    "half a pickle": lambda _: b"\x80\x05\x95",
    "a part of zeros": lambda whole: whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
    # In the machine code, which numba would run.
    "a part of other bytes": lambda whole: whole[:1000] + bytes(range(256)) * 4 + whole[2024:],
    "one bit": lambda whole: whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :],
    "hashes that are half written": lambda whole: whole[: len(whole) // 2],
}  # fmt: skip


@pytest.mark.parametrize("suffix", [".nbi", ".nbc", ".json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_filled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, damage: str
) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def compile_again() -> float:
        total = np.zeros(3)
        _compile(add_one, signature)(total)
        return float(total.sum())

    signature = void(float64[::1])
    assert compile_again() == 3.0
    files = list(tmp_path.rglob(f"*{suffix}"))
    assert files
    for file in files:
        file.write_bytes(DAMAGES[damage](file.read_bytes()))
    assert compile_again() == 3.0
    # What was filled again is used: nothing is written any more.
    whole = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")}
    assert len(whole) == 3
    assert compile_again() == 3.0
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.*")} == whole


def test_threads_wait_for_one_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []

    def compile_once(function: Any, signature: Any) -> Any:
        compiled.append(function)
        return function

    monkeypatch.setattr("dem_hub.numerics.compilation._compile", compile_once)
    one_pass = CompiledPass(add_one, void(float64[::1]))
    total = np.zeros(3)
    threads = [threading.Thread(target=one_pass, args=(total,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert compiled == [add_one]


def add_one(total):  # type: ignore[no-untyped-def]
    for place in range(len(total)):
        total[place] += 1.0


@pytest.mark.parametrize(("patience", "said"), [(0.0, True), (60.0, False)])
def test_a_long_compilation_is_announced(monkeypatch: pytest.MonkeyPatch, patience: float, said: bool) -> None:
    texts: list[str] = []
    done = threading.Event()

    def say(text: str) -> None:
        texts.append(text)
        done.set()

    monkeypatch.setattr(compilation, "_PATIENCE", patience)
    monkeypatch.setattr(compilation, "_say", say)
    with _announced("add_one"):
        done.wait(10 if said else 0.01)
    assert texts == (["Compiling add_one, once for this installation ..."] if said else [])


def test_what_is_said_stands_alone_among_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.utils.are_progress_bars_disabled", lambda: False)
    with tqdm(total=2, desc="Loading weights") as bar:
        _say("Compiling add_one")
        bar.update(2)
    captured = capsys.readouterr().err
    assert "Compiling add_one" in re.split("[\r\n]", captured)


def test_bars_that_begin_while_something_is_compiled_have_the_first_line() -> None:
    """One on the second line would leave what it drew there behind."""
    with _announced("add_one"), tqdm(total=2) as bar:
        assert bar.pos == 0
