"""Time what starts: imports, the command line, and a merge of a tiny model, the first time and afterwards.

    python benchmarks/start.py                       # on an idle machine

The first time, numba has compiled nothing yet, as after an installation. Bytecode is there, as pip leaves it. The
bounds are: importing `DEMModel` takes at most 0.3 seconds more than importing transformers' models, and the first merge
at most 6 seconds.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.support.tiny_models import Zoo

TRANSFORMERS = "from transformers import AutoModelForCausalLM, PreTrainedModel"
DEM_MODEL = "from dem_hub import DEMModel"
MERGE = "dem-hub merge"

# Seconds.
IMPORT_BOUND = 0.3
MERGE_BOUND = 6.0


def seconds(command: list[str], bytecode: Path, compiled: Path) -> float:
    """Run a command with its bytecode, and what numba compiles, in two folders; returns the wall time."""
    folders = {"PYTHONPYCACHEPREFIX": str(bytecode), "NUMBA_CACHE_DIR": str(compiled)}
    environment = {**os.environ, **folders, "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    start = time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def commands(scratch: Path) -> dict[str, list[str]]:
    """Return what is timed, by its label."""
    zoo = Zoo(scratch)
    base = zoo.models("llama-tied", "bfloat16").base
    vector = zoo.vector("llama-tied", "bfloat16", "lossy")
    recipe = [str(base), "--vector", f"{vector}=0.5", "--output", str(scratch / "merged"), "--overwrite"]
    python = [sys.executable, "-c"]
    command_line = [str(Path(sys.executable).with_name("dem-hub"))]
    return {
        "import dem_hub": [*python, "import dem_hub"],
        "dem-hub --help": [*command_line, "--help"],
        TRANSFORMERS: [*python, TRANSFORMERS],
        DEM_MODEL: [*python, DEM_MODEL],
        MERGE: [*command_line, "merge", *recipe],
    }


def main() -> int:
    """Print a table; the exit status is 1 if a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeat", type=int, default=5, help="runs of each (default: %(default)s)")
    options = parser.parse_args()
    first: dict[str, list[float]] = {}
    again: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        timed = commands(Path(folder))
        bytecode = Path(folder) / "bytecode"
        for command in timed.values():
            seconds(command, bytecode, Path(folder) / "compiled")
        # Runs of one command are spread over the time, so that a busy moment does not fall on one of them.
        for number in range(options.repeat):
            for label, command in timed.items():
                compiled = Path(folder) / f"compiled {label} {number}"
                first.setdefault(label, []).append(seconds(command, bytecode, compiled))
                again.setdefault(label, []).append(seconds(command, bytecode, compiled))
    print("| what | the first time, s | afterwards, s |\n|---|---|---|")
    for label in timed:
        print(f"| `{label}` | {statistics.median(first[label]):.2f} | {statistics.median(again[label]):.2f} |")
    beyond = [statistics.median(of[DEM_MODEL]) - statistics.median(of[TRANSFORMERS]) for of in (first, again)]
    print(f"\n`DEMModel` beyond transformers: {beyond[0]:+.2f} s the first time, {beyond[1]:+.2f} s afterwards")
    return int(max(beyond) > IMPORT_BOUND or statistics.median(first[MERGE]) > MERGE_BOUND)


if __name__ == "__main__":
    sys.exit(main())
