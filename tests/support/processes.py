"""Processes that start with the libraries loaded.

Importing torch and transformers takes a process longer than most of what tests have it do. So one process imports them,
once for each worker of the tests, and is forked for each program (`forkserver` of Python). A program has an environment,
a folder and streams of its own, as if it had been started by a shell. What is to be seen from its very start on, such as
the order of imports, needs `subprocess`.
"""

import importlib
import multiprocessing
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

LOADED = [
    "torch",
    "transformers.trainer",
    "transformers.pipelines",
    "transformers.models.llama.modeling_llama",
    "peft",
    "dem_hub.models.loading",
    "dem_hub.models.export",
    "dem_hub.search.search",
    "dem_hub.training.callback",
]
PATIENCE = 900  # seconds, for a process that hangs; a crowded machine takes minutes for one that does not
READ_ONCE = ["huggingface_hub.constants", "datasets.config"]  # they read the environment when they are imported
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(LOADED)


@dataclass(frozen=True)
class Program:
    """A running program, and the files of its two streams."""

    command: list[str]
    process: Any
    streams: Path

    def end(self) -> "subprocess.CompletedProcess[str]":
        """Wait for its end, and return what `subprocess.run` would. What hangs is killed."""
        self.process.join(PATIENCE)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        output, errors = ((self.streams / name).read_text("utf-8") for name in ("output", "errors"))
        shutil.rmtree(self.streams)
        return subprocess.CompletedProcess(self.command, self.process.exitcode, output, errors)


def start(
    program: str | Path, *arguments: object, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> Program:
    """Start a program: the path of a script, or its text."""
    words = list(map(str, arguments))
    streams = Path(tempfile.mkdtemp(prefix="dem_hub-tests-"))
    process = _CONTEXT.Process(
        target=_run, args=(program, words, dict(environment or os.environ), folder or Path.cwd(), streams)
    )
    process.start()
    return Program([str(program), *words], process, streams)


def run(
    program: str | Path, *arguments: object, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a program to its end."""
    return start(program, *arguments, environment=environment, folder=folder).end()


def run_ranks(
    program: str | Path, *arguments: object, environment: Mapping[str, str] | None = None, folder: Path | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a program as two ranks, with what torchrun tells each of them. If one of them fails, the other is ended."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GLOO_SOCKET_IFNAME": "lo",
    }
    ranks = []
    for rank in ("0", "1"):
        own = {**(environment or os.environ), **told, "RANK": rank, "LOCAL_RANK": rank}
        ranks.append(start(program, *arguments, environment=own, folder=folder))
    wait([rank.process.sentinel for rank in ranks], PATIENCE)
    for rank in ranks:
        rank.process.join(0)
    if any(rank.process.exitcode for rank in ranks):
        for rank in ranks:
            rank.process.terminate()  # it may wait for the one that failed
    done = [rank.end() for rank in ranks]
    status = next((end.returncode for end in done if end.returncode), 0)
    output, errors = "".join(end.stdout for end in done), "\n".join(end.stderr for end in done)
    return subprocess.CompletedProcess(done[0].args, status, output, errors)


def _run(
    program: str | Path, arguments: Sequence[str], environment: Mapping[str, str], folder: Path, streams: Path
) -> None:
    """Be the program, in the process that is its own."""
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(streams / name, os.O_WRONLY | os.O_CREAT), number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for name in READ_ONCE:
        if name in sys.modules:
            importlib.reload(sys.modules[name])
    import torch

    torch.set_num_threads(1)  # several of them share the machine
    sys.argv = [str(program), *arguments]
    if isinstance(program, str):
        names = {"__name__": "__main__"}
        exec(compile(program, "<program>", "exec"), names)
        return
    sys.path.insert(0, str(program.parent))
    runpy.run_path(str(program), run_name="__main__")
