"""dem_hub compared with mergekit, PEFT, a simple script, and plain reading and writing, on one machine.

The inputs are one base, three fine-tunes and three LoRAs. Every run is a process of its own. The tools take turns,
and medians count. Memory is that of a first run, which fills the page cache and is not timed. Loading is timed inside
the process, without imports; an export is timed as a whole process. The deviation is the share of elements of the
result that are neither of the two bf16 values around the float64 sum.

    python -m venv mergekit && mergekit/bin/pip install mergekit==0.1.5
    python benchmarks/peers.py --mergekit mergekit/bin/mergekit-yaml --folder peers         # 6 GB of disk; Linux
    sudo python benchmarks/peers.py ... --folder peers-64 --layers 64 --cold --parts dense lora    # 20 GB

`--cold` includes the disk: the page cache is emptied before each export, and the time ends when all output is on the
disk.

Bars: loading takes at most 2.5 times as long as plain `from_pretrained` with every tensor read once in float32, and
is 5 times as fast as PEFT; `auto` vectors of whole fine-tunes take at most twice as long as LoRAs. Export is 3 times
as fast as mergekit on dense vectors and 10 times on LoRAs, and takes at most 1.5 times as long as reading all inputs
and writing the output.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from processes import Run, forget_files, run
from safetensors import safe_open
from synthetic import Size, make_adapter, make_checkpoint

from dem_hub import DistributionVector
from dem_hub.checkpoints.reader import Checkpoint

COEFFICIENTS = (0.5, 0.3, 0.2)
PARTS = ("load", "auto", "dense", "lora")
SIZE = Size(1024, 2816, 32000, 16)

PLAIN = """
import sys, time
from transformers import LlamaForCausalLM
start = time.perf_counter()
model = LlamaForCausalLM.from_pretrained(sys.argv[1])
sum(float(parameter.float().sum()) for parameter in model.parameters())
print(time.perf_counter() - start)
"""
OURS = """
import sys, time
from transformers import LlamaForCausalLM
from dem_hub import DEMModel
import dem_hub.models.loading, dem_hub.numerics.kernels  # imports are not counted; numba's takes half a second
base, *vectors = sys.argv[1:]
start = time.perf_counter()
model = DEMModel.from_pretrained(base, vectors=dict(zip(vectors, (0.5, 0.3, 0.2))))
sum(float(parameter.float().sum()) for parameter in model.parameters())
print(time.perf_counter() - start)
"""
PEFT = """
import sys, time
from transformers import LlamaForCausalLM
from peft import PeftModel
base, *loras = sys.argv[1:]
start = time.perf_counter()
model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), loras[0], adapter_name="0")
for number, path in enumerate(loras[1:], 1):
    model.load_adapter(path, adapter_name=str(number))
model.add_weighted_adapter(["0", "1", "2"], [0.5, 0.3, 0.2], "sum", combination_type="cat")
model.set_adapter("sum")
model = model.merge_and_unload()
sum(float(parameter.float().sum()) for parameter in model.parameters())
print(time.perf_counter() - start)
"""
NAIVE = """
import sys, torch
from transformers import LlamaForCausalLM
base, out, *tuned = sys.argv[1:]
model = LlamaForCausalLM.from_pretrained(base)
others = [LlamaForCausalLM.from_pretrained(path).state_dict() for path in tuned]
with torch.no_grad():
    for name, tensor in model.state_dict().items():
        start = tensor.clone()
        for coefficient, other in zip((0.5, 0.3, 0.2), others):
            tensor += coefficient * (other[name] - start)
model.save_pretrained(out)
"""
COPY = """
import sys, shutil
from pathlib import Path
out, base, *others = sys.argv[1:]
for path in others:
    with open(path, "rb") as stream:
        while stream.read(1 << 24):
            pass
Path(out).mkdir()
shutil.copyfile(base, Path(out) / "model.safetensors")
"""


@dataclass(frozen=True)
class Row:
    """One tool: its runs, the seconds of each that count, and the peak private memory of one, in bytes."""

    runs: Sequence[Run]
    seconds: Sequence[float]
    private: int

    @property
    def median(self) -> float:
        """Median of the seconds."""
        return statistics.median(self.seconds)


def run_cold(command: Sequence[str | Path], folder: Path) -> Run:
    """Run a command with an empty page cache, until all output is on the disk."""
    forget_files()
    found, start = run(command, folder, samples_memory=False), time.perf_counter()
    os.sync()
    return replace(found, wall=found.wall + time.perf_counter() - start)


def take_turns(
    commands: Mapping[str, Sequence[str | Path]], folder: Path, repeat: int, *, inside: bool, cold: bool = False
) -> dict[str, Row]:
    """Run the commands in turn, each as often as asked. With `inside`, the seconds that a command prints count."""
    timed = run_cold if cold else partial(run, samples_memory=False)
    runs: dict[str, list[Run]] = {name: [] for name in commands}
    for turn in range(repeat + 1):
        for name, command in commands.items():
            shutil.rmtree(folder / "out", ignore_errors=True)
            found = timed(command, folder) if turn else run(command, folder)
            runs[name].append(found)
            print(f"{name}: {found.wall:.1f} s", file=sys.stderr)
    rows = {}
    for name, (first, *rest) in runs.items():
        seconds = [float(one.output.split()[-1]) if inside else one.wall for one in rest]
        rows[name] = Row(rest, seconds, first.private)
    return rows


def deviation(result: Path, base: Path, terms: Sequence[Checkpoint | Path]) -> float:
    """Return the share of elements that are not one of the two bf16 values around the float64 sum."""
    merged, start = Checkpoint(result), Checkpoint(base)
    adapters = [safe_open(term / "adapter_model.safetensors", "pt") for term in terms if isinstance(term, Path)]
    wrong = total = 0
    for name in start:
        exact = start.read(name).double()
        origin = exact.clone()
        for coefficient, term in zip(COEFFICIENTS, terms, strict=True):
            if isinstance(term, Checkpoint):
                exact += coefficient * (term.read(name).double() - origin)
        prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
        for coefficient, factors in zip(COEFFICIENTS, adapters, strict=False):
            if f"{prefix}A.weight" in factors.keys():  # noqa: SIM118  it is no mapping
                left, right = (factors.get_tensor(f"{prefix}{letter}.weight").double() for letter in "BA")
                exact += coefficient * 2 * left @ right
        near = exact.bfloat16().double()
        step = (near.abs().frexp().exponent - 8).double().exp2()  # bf16's, at this magnitude
        found = merged.read(name).double()
        wrong += int(((found - exact).abs() > step * (1 + 1e-6)).sum())
        total += exact.numel()
    return wrong / total


def mergekit_config(folder: Path, base: Path, terms: Sequence[str]) -> Path:
    """Write a merge as a mergekit config."""
    models = [
        {"model": term, "parameters": {"weight": weight}} for term, weight in zip(terms, COEFFICIENTS, strict=True)
    ]
    config = {
        "merge_method": "task_arithmetic",
        "base_model": str(base),
        "dtype": "bfloat16",
        "parameters": {"normalize": False},
        "models": models,
    }
    path = folder / f"{Path(terms[0]).name}.json"
    path.write_text(json.dumps(config), "utf-8")  # JSON is YAML
    return path


def show(title: str, rows: Mapping[str, Row], wrong: Mapping[str, float]) -> None:
    """Print a table of medians, with ratios to dem_hub."""
    ours = rows["dem_hub"].median
    print(
        f"\n{title}\n\n| | seconds | times dem_hub's | CPU, s | private, MB | neither of the two nearest |\n"
        "|---|---|---|---|---|---|"
    )
    for name, row in rows.items():
        cpu = statistics.median(one.cpu for one in row.runs)
        share = f"{wrong[name]:.3%}" if name in wrong else ""
        print(
            f"| {name} | {row.median:.2f} | {row.median / ours:.2f} | {cpu:.1f} | {row.private / 1e6:.0f} | {share} |",
            flush=True,
        )


def compare_loading(folder: Path, base: Path, loras: Sequence[Path], repeat: int) -> list[str]:
    """Measure loading, and return the bars that are missed."""
    programs = {"plain": (PLAIN, base), "dem_hub": (OURS, base, *loras), "PEFT": (PEFT, base, *loras)}
    commands = {name: [sys.executable, "-c", *program] for name, program in programs.items()}
    rows = take_turns(commands, folder, repeat, inside=True)
    show("Base + 3 LoRAs of rank 16, into a model", rows, {})
    times, faster = rows["dem_hub"].median / rows["plain"].median, rows["PEFT"].median / rows["dem_hub"].median
    return [f"loading takes {times:.2f} times plain"] * (times > 2.5) + [f"PEFT's loading only {faster:.2f} times"] * (
        faster < 5
    )


def compare_auto(folder: Path, base: Path, loras: Sequence[Path], autos: Sequence[Path], repeat: int) -> list[str]:
    """Measure loading of `auto` vectors against LoRAs, and return the bar if it is missed."""
    programs = {"LoRAs": loras, "dem_hub": autos}
    commands = {name: [sys.executable, "-c", OURS, base, *vectors] for name, vectors in programs.items()}
    rows = take_turns(commands, folder, repeat, inside=True)
    show("Base + 3 LoRAs of rank 16, or 3 auto vectors, into a model", rows, {})
    times = rows["dem_hub"].median / rows["LoRAs"].median
    return [f"loading auto vectors takes {times:.2f} times as long as LoRAs"] * (times > 2)


def compare_export(
    kind: str,
    folder: Path,
    base: Path,
    inputs: Mapping[str, Sequence[Path]],
    mergekit: Path | None,
    repeat: int,
    *,
    cold: bool,
) -> list[str]:
    """Measure the export of base + three vectors of a kind, and return the bars that are missed."""
    ours, theirs = inputs["vectors" if kind == "dense" else "loras"], inputs["tuned" if kind == "dense" else "loras"]
    out = folder / "out"
    weighted = [word for path, c in zip(ours, COEFFICIENTS, strict=True) for word in ("--vector", f"{path}={c}")]
    commands: dict[str, Sequence[str | Path]] = {
        "read and write": [
            sys.executable,
            "-c",
            COPY,
            out,
            *(next(path.glob("*.safetensors")) for path in (base, *ours)),
        ],
        "dem_hub": [sys.executable, "-m", "dem_hub.cli", "merge", base, *weighted, "-o", out],
    }
    if kind == "dense":
        commands["naive"] = [sys.executable, "-c", NAIVE, base, out, *theirs]
    if mergekit is not None:
        config = mergekit_config(folder, base, [str(path) if kind == "dense" else f"{base}+{path}" for path in theirs])
        commands["mergekit"] = [mergekit, config, out, "--lazy-unpickle", "--lora-merge-cache", out / "cache"]
    rows = take_turns(commands, folder, repeat, inside=False, cold=cold)
    wrong = {}
    for name in commands.keys() - {"read and write"}:
        shutil.rmtree(out, ignore_errors=True)
        run(commands[name], folder)
        wrong[name] = deviation(out, base, [Checkpoint(path) if kind == "dense" else path for path in theirs])
    show(f"Base + 3 {kind} vectors, into a folder", rows, wrong)
    times = rows["dem_hub"].median / rows["read and write"].median
    missed = [f"{kind} export takes {times:.2f} times reading and writing"] * (times > 1.5)
    faster, bar = (
        rows["mergekit"].median / rows["dem_hub"].median if mergekit else math.inf,
        3 if kind == "dense" else 10,
    )
    return missed + [f"mergekit's {kind} export only {faster:.2f} times"] * (faster < bar)


def extract(base: Path, finetunes: Sequence[Path], codec: str, target: Path) -> list[Path]:
    """Return the vector of each fine-tune, in folders that begin with `target`; they are made if they do not exist."""
    vectors = [Path(f"{target}-{number}") for number in range(len(finetunes))]
    for path, finetuned in zip(vectors, finetunes, strict=True):
        if not path.is_dir():
            DistributionVector.extract(base, finetuned, codec=codec).save_pretrained(path)
    return vectors


def main() -> None:
    """Make the inputs if they do not exist, measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="folder for checkpoints; they are kept")
    parser.add_argument("--mergekit", type=Path, help="the command mergekit-yaml; by default mergekit is left out")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--layers",
        type=int,
        default=SIZE.layers,
        help="layers of the model (default: %(default)s, 271 million parameters)",
    )
    parser.add_argument(
        "--cold",
        action="store_true",
        help="for exports: read from the disk and write to it, without the page cache (needs root)",
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    size = replace(SIZE, layers=arguments.layers)
    base = make_checkpoint(folder / "base", size)
    inputs = {"loras": [make_adapter(folder / f"lora-{seed}", base, seed=seed) for seed in range(3)]}
    if {"auto", "dense"} & set(arguments.parts):
        inputs["tuned"] = [make_checkpoint(folder / f"tuned-{seed}", size, "every", base, seed) for seed in range(3)]
    if "auto" in arguments.parts:
        inputs["autos"] = extract(base, inputs["tuned"], "auto", folder / "auto")
    if "dense" in arguments.parts:
        inputs["vectors"] = extract(base, inputs["tuned"], "dense", folder / "vector")
    print(f"{size}, {torch.get_num_threads()} threads, {'cold, ' * arguments.cold}medians of {arguments.repeat}.")
    missed = []
    for part in arguments.parts:
        if part == "load":
            missed += compare_loading(folder, base, inputs["loras"], arguments.repeat)
        elif part == "auto":
            missed += compare_auto(folder, base, inputs["loras"], inputs["autos"], arguments.repeat)
        else:
            missed += compare_export(
                part, folder, base, inputs, arguments.mergekit, arguments.repeat, cold=arguments.cold
            )
    if missed:
        raise SystemExit("\nBars that are missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
