"""Measurements of a command: wall time, CPU time, and peak private memory.

"Private" memory is RssAnon of the process and its children, sampled every 10 ms. No file backs it, so the system
cannot take it back. Pages of memory-mapped checkpoints are not counted. Linux only. The samples take time of the cores
that the command needs, so a run that is timed can be without.
"""

import os
import resource
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Run:
    """One run of a command: seconds of wall time and CPU time, bytes of peak private memory (0 if it was not sampled),
    and its stdout.
    """

    wall: float
    cpu: float
    private: int
    output: str


def run(
    command: Sequence[str | Path],
    scratch: Path,
    *,
    samples_memory: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Run:
    """Run a command, quietly and offline, with its temporary files in `scratch`, or with other variables of the
    environment.
    """
    quiet = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TMPDIR": str(scratch),
        "HF_HOME": str(scratch / "home"),
        **(environment or {}),
    }
    log = scratch / "output.txt"
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with log.open("wb") as output, (scratch / "errors.txt").open("wb") as errors:
        process = subprocess.Popen(list(map(str, command)), env={**os.environ, **quiet}, stdout=output, stderr=errors)
        highest = 0
        while samples_memory and process.poll() is None:
            highest = max(highest, private_memory(process.pid))
            time.sleep(0.01)
        process.wait()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode != 0:
        told = (scratch / "errors.txt").read_text("utf-8", "replace")[-2000:]
        raise SystemExit(f"failed with status {process.returncode}: {' '.join(map(str, command))}\n{told}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(wall, cpu, highest, log.read_text("utf-8"))


def forget_files() -> None:
    """Flush all writes and empty the page cache, so that the next read comes from the disk. Needs root."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def private_memory(pid: int) -> int:
    """Return RssAnon of a process and all its children, in bytes."""
    total = 0
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                total = 1024 * int(line.split()[1])
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # the process has ended
        return total
    return total + sum(private_memory(child) for child in children)
