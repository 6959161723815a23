"""Time what the plug-in adds when vLLM loads a recipe, against vLLM's own loading of the exported merge. On a CPU.

    python benchmarks/vllm_load.py dem-hub-demo/recipe --repeat 7        # in the environment of `make test-vllm`

Each load is a process of its own, and the two ways take turns at being first. Times are CPU seconds of the process and
its children, which a busy machine blurs less, and wall time. "Start" is everything until vLLM can answer: imports, the
model, its weights, a first run, the cache. "Weights" is the loader's part of it. Both ratios are printed: that of the
medians, and the median of those of the pairs. The bound is on the start: at most 20 % more than the export's, in the
medians of wall and CPU time. All loads must have the same weights.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

BOUND = 1.2

WAYS = ("export", "recipe")
TIMES = ("start, CPU s", "start, s", "weights, CPU s", "weights, s")

SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # An installed package is not compiled at each start.
    "PYTHONDONTWRITEBYTECODE": "",
    # The model is in this process, where it can be timed and hashed.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
}


def cpu_seconds() -> float:
    """Return the CPU time of this process and of its children that have ended."""
    return sum(os.times()[:4])


def load(model: dict[str, Any]) -> dict[str, Any]:
    """Load a model in this process; returns the seconds, and the hash of the weights."""
    started = time.perf_counter()
    from vllm import LLM
    from vllm.model_executor import model_loader

    from tests.serving.vllm_worker import digest

    spent = {}
    get_model_loader = model_loader.get_model_loader

    def timed_loader(*arguments: Any) -> Any:
        loader = get_model_loader(*arguments)
        load_weights = loader.load_weights

        def timed(*arguments: Any) -> None:
            wall, cpu = time.perf_counter(), cpu_seconds()
            load_weights(*arguments)
            spent.update({"weights, CPU s": cpu_seconds() - cpu, "weights, s": time.perf_counter() - wall})

        loader.load_weights = timed
        return loader

    model_loader.get_model_loader = timed_loader
    llm = LLM(enforce_eager=True, max_model_len=64, **model)
    spent.update({"start, CPU s": cpu_seconds(), "start, s": time.perf_counter() - started})
    return {**spent, "hash": llm.apply_model(digest)[0]}


def seen(model: dict[str, Any]) -> dict[str, Any]:
    """Load a model in a new process, and return what it has seen."""
    command = [sys.executable, __file__, "--load", json.dumps(model)]
    done = subprocess.run(command, env={**os.environ, **SETTINGS}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr[-4000:])
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def main() -> int:
    """Print a table; the exit status is 1 if the bound is broken or the weights differ."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe", nargs="?", help="a recipe, such as that of `make demo`")
    parser.add_argument("--repeat", type=int, default=7, help="loads of each (default: %(default)s)")
    parser.add_argument("--load", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        print(json.dumps(load(json.loads(options.load))))
        return 0
    from dem_hub.cli.app import main as dem_hub

    loads: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / "merged"
        if dem_hub(["merge", options.recipe, "-o", str(exported)]) != 0:
            return 1
        models = {
            "export": {"model": str(exported)},
            "recipe": {"model": options.recipe, "load_format": "dem", "config_format": "dem"},
        }
        for model in models.values():  # what is compiled once, and the page cache
            seen(model)
        for number in range(options.repeat):
            for way in WAYS[:: 1 if number % 2 == 0 else -1]:
                loads[way].append(seen(models[way]))
                print(way, loads[way][-1], file=sys.stderr)
    print("| | export | recipe | ratio | median of pairs |\n|---|---|---|---|---|")
    ratios = {}
    for label in TIMES:
        times = {way: [load[label] for load in loads[way]] for way in WAYS}
        export, recipe = (statistics.median(times[way]) for way in WAYS)
        ratios[label] = recipe / export
        pairs = [recipe / export for export, recipe in zip(times["export"], times["recipe"], strict=True)]
        print(f"| {label} | {export:.2f} | {recipe:.2f} | {ratios[label]:.2f} | {statistics.median(pairs):.2f} |")
    hashes = {load["hash"] for way in WAYS for load in loads[way]}
    print(f"\n{options.repeat} pairs; {len(hashes)} different hash(es) of the weights")
    missed = [label for label in ("start, CPU s", "start, s") if ratios[label] > BOUND]
    return int(bool(missed) or len(hashes) != 1)


if __name__ == "__main__":
    sys.exit(main())
