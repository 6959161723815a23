"""Ctrl-C during an import waits for its end, and no import can swallow it."""

import importlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dem_hub.cli.interrupts import let_interrupts_wait_for_imports

INTERRUPT = "import signal\nsignal.raise_signal(signal.SIGINT)\n"
# As torch does: whatever goes wrong is dropped.
SWALLOW = "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException:\n    pass\n"


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for modules to import, with the handler in place."""
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    let_interrupts_wait_for_imports()
    yield tmp_path
    signal.signal(signal.SIGINT, before)
    for path in tmp_path.glob("*.py"):
        sys.modules.pop(path.stem, None)


def write(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(f"{text}is_done = True\n", "utf-8")


@pytest.mark.parametrize("text", [INTERRUPT, SWALLOW], ids=["plain", "swallowed"])
def test_an_import_is_finished_first(modules: Path, text: str, capfd: pytest.CaptureFixture[str]) -> None:
    write(modules, "interrupted_module", text)
    with pytest.raises(KeyboardInterrupt):
        assert importlib.import_module("interrupted_module").is_done
        time.sleep(30)
    assert "interrupted_module" in sys.modules
    assert "Stopping after an import" in capfd.readouterr().err


def test_imports_that_follow_are_not_interrupted(modules: Path) -> None:
    """The next import begins at once, and takes longer than the time between two looks."""
    write(modules, "interrupted_module", INTERRUPT)
    write(modules, "next_module", "import time\ntime.sleep(0.1)\n")
    names = ["interrupted_module", *["next_module"] * 3]
    with pytest.raises(KeyboardInterrupt):
        for name in names:
            sys.modules.pop(name, None)
            assert importlib.import_module(name).is_done
        time.sleep(30)


def test_the_second_does_not_wait(modules: Path) -> None:
    write(modules, "interrupted_module", INTERRUPT + INTERRUPT)
    with pytest.raises(KeyboardInterrupt):
        importlib.import_module("interrupted_module")
    assert "interrupted_module" not in sys.modules
    time.sleep(0.1)  # and no third comes after it


def test_outside_of_imports_it_is_at_once(modules: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_process_that_ignores_it_still_does(modules: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    let_interrupts_wait_for_imports()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_a_command_that_imports_torch_is_stopped(tmp_path: Path) -> None:
    """The signal comes in the middle of torch's import."""
    script = (
        "import os, signal, sys, time\n"
        # A process that a shell started in the background ignores Ctrl-C, and so do its children.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'torch._C':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\n"
        "import click\n"
        "from dem_hub.cli.app import app, run\n"
        "def wait():\n"
        "    import torch\n"
        "    time.sleep(60)\n"
        "app.add_command(click.Command('wait', callback=wait))\n"
        "sys.argv[1:] = ['wait']\n"
        "run()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode in (130, -signal.SIGINT), done
    assert "Stopping after an import" in done.stderr
    assert "stopped by Ctrl-C" in done.stderr
