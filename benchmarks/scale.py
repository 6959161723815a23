"""Growth of the cost of exporting and loading with the size of the model, the number of vectors, and their rank; and of
searching, and of gathering input statistics, with the size of the model.

For each size, the script makes a Llama checkpoint of random bf16 weights (larger ones are wider) and PEFT LoRAs with
random factors on all linear layers. It deletes them after the measurement. An export is timed as a whole process.
Loading is timed inside the process, without imports, and every tensor is read once in float32, a piece at a time. (A
float32 copy of a whole tensor above 32 MB is new memory each time, and would dominate the time.) The runs take turns,
the first of each warms the page cache, and medians count.

    python benchmarks/scale.py                                              # Linux; 21 GB of disk, 24 GB of memory
    python benchmarks/scale.py --sizes 0.3 0.6 --vectors 1 3 --repeat 1     # to see it work, in two minutes
    python benchmarks/scale.py --only-running --running 0.1 0.3 1           # searches and statistics alone

Growth is the slope of log(seconds - constant part) over log(size), or over log(vectors times rank): 1 is linear. The
constant part is measured too: a model of 0.3 MB, and vectors whose coefficients are 0. Points within 5 % of it are
left out of the slope. The script also measures how long the system takes to hand out the memory of a loaded model. On
a virtual machine, gigabytes that were not used lately cost several times as much as the first. The bars are for the
whole seconds. A fit to all points gives

    seconds = a + b * gigabytes + c * gigabytes * vectors * rank

with the smallest relative residuals. From it follows the time for 70B parameters with 8 vectors, if this machine had
the disk and memory. Bars: no slope is above 1.1, and 32 vectors of rank 16 take less than 3 times as long as 3 of
them.

A search of three LoRAs, and the statistics of one vector, run the model over `TOKENS` random tokens. Their sizes are
smaller, and only these grow: seconds = a + b * gigabytes, with the smallest relative residuals, and the same for the
private memory. What follows for 70B parameters is an extrapolation of that line, far beyond the sizes that were measured.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from processes import Run, run
from synthetic import Size, make_adapter, make_checkpoint

STEEPEST = 1.1
NOISE = 0.05  # points closer to the constant part, as a share, are left out of the slope
TINY = Size(128, 256, 256, 1)
LARGE = 140.0  # GB of bf16 in 70B parameters
LOAD = """
import sys, time
from transformers import LlamaForCausalLM
from dem_hub import DEMModel
import dem_hub.models.loading, dem_hub.numerics.kernels  # imports are not counted; numba's takes half a second
base, coefficient, *vectors = sys.argv[1:]
start = time.perf_counter()
model = DEMModel.from_pretrained(base, vectors=dict.fromkeys(vectors, float(coefficient)))
sum(float(piece.float().sum()) for parameter in model.parameters() for piece in parameter.flatten().split(1 << 20))
print(time.perf_counter() - start)
"""
TOKENS = (8, 32)  # windows, and tokens of each
STATISTICS = """
import sys, time, torch
from pathlib import Path
from transformers import LlamaForCausalLM
from dem_hub.checkpoints.base_model import Base
from dem_hub.evaluation.windows import Window
from dem_hub.hub.download import Resolved
from dem_hub.input_statistics.gathering import gather
base, windows, length = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
model = LlamaForCausalLM.from_pretrained(base, dtype="bfloat16")
ids = torch.randint(4, model.config.vocab_size, (windows, length), generator=torch.Generator().manual_seed(0)).tolist()
start = time.perf_counter()
gather(model, Base(Resolved.local(base)).architecture, [Window.of(row) for row in ids])
print(time.perf_counter() - start)
"""
SEARCH = """
import json, sys, time, torch
from pathlib import Path
from dem_hub import search_coefficients
base, windows, length, *vectors = sys.argv[1:]
vocabulary = json.loads(Path(base, "config.json").read_text())["vocab_size"]
shape, generator = (2 * int(windows), int(length)), torch.Generator().manual_seed(0)
rows = [{"input_ids": ids} for ids in torch.randint(4, vocabulary, shape, generator=generator).tolist()]
start = time.perf_counter()
search_coefficients(base, vectors, {"random": rows}, held_out=0.5, dtype="bfloat16")
print(time.perf_counter() - start)
"""
TOUCH = """
import sys, time, torch
size, start = int(sys.argv[1]), time.perf_counter()
pieces = [torch.empty(1 << 24, dtype=torch.uint8).fill_(1) for _ in range(size >> 24)]
print(time.perf_counter() - start)
"""


@dataclass(frozen=True)
class Point:
    """One setting, measured: gigabytes of the base, number of vectors that count, their rank, and the medians of the
    runs.

    `touch` are the seconds of writing once to as much new memory as the loaded model has; an export needs none.
    """

    gigabytes: float
    vectors: int
    rank: int
    seconds: float
    cpu: float
    private: int
    touch: float

    @property
    def directions(self) -> int:
        """Number of vectors times rank."""
        return self.vectors * self.rank


def shape_of(gigabytes: float) -> Size:
    """Return the shape of a Llama of about this size in bf16, with a usual width. No LoRA changes its embeddings, an
    eighth of it.
    """
    width, parameters = 1024 if gigabytes < 0.6 else 2048 if gigabytes < 3 else 4096, gigabytes * 1e9 / 2
    inner, vocabulary = width * 11 // 4, round(parameters / 8 / (2 * width))
    layers = (parameters - 2 * vocabulary * width) / (4 * width**2 + 3 * width * inner)
    return Size(width, inner, vocabulary, max(1, round(layers)))


def measure(folder: Path, size: Size, settings: Sequence[tuple[int, int]], repeat: int) -> dict[str, list[Point]]:
    """Export and load a base of one size in each setting (vectors, rank). 0 vectors means one vector with coefficient
    0.
    """
    base, out = make_checkpoint(folder / "base", size), folder / "out"
    gigabytes = sum(file.stat().st_size for file in base.glob("*.safetensors")) / 1e9
    runs: dict[tuple[str, int, int], list[tuple[float, Run]]] = {}
    for count, rank in settings:
        loras = [make_adapter(folder / f"lora-{rank}-{seed}", base, rank, seed) for seed in range(max(count, 1))]
        coefficient = 1 / count if count else 0.0
        weighted = [word for lora in loras for word in ("--vector", f"{lora}={coefficient}")]
        commands: dict[str, list[str | Path]] = {
            "export": [sys.executable, "-m", "dem_hub.cli", "merge", base, *weighted, "-o", out],
            "load": [sys.executable, "-c", LOAD, base, str(coefficient), *loras],
            "touch": [sys.executable, "-c", TOUCH, str(int(gigabytes * 1e9))],
        }
        for turn in range(repeat + 1):
            for kind, command in commands.items():
                shutil.rmtree(out, ignore_errors=True)
                found = run(command, folder)
                seconds = found.wall if kind == "export" else float(found.output.split()[-1])
                if turn:
                    runs.setdefault((kind, count, rank), []).append((seconds, found))
                print(f"{gigabytes:.2f} GB, {count} of rank {rank}, {kind}: {seconds:.2f} s", file=sys.stderr)
    points: dict[str, list[Point]] = {"export": [], "load": []}
    for count, rank in settings:
        touch = statistics.median(seconds for seconds, _ in runs["touch", count, rank])
        for kind, measured in points.items():
            timed = runs[kind, count, rank]
            seconds, cpu, private = (
                statistics.median(values)
                for values in zip(*((one, each.cpu, each.private) for one, each in timed), strict=True)
            )
            measured.append(Point(gigabytes, count, rank, seconds, cpu, int(private), touch if kind == "load" else 0.0))
    shutil.rmtree(folder)
    return points


def measure_running(folder: Path, size: Size, repeat: int) -> dict[str, Point]:
    """Search, and gather input statistics, with a base of one size."""
    base = make_checkpoint(folder / "base", size)
    gigabytes = sum(file.stat().st_size for file in base.glob("*.safetensors")) / 1e9
    loras = [make_adapter(folder / f"lora-{seed}", base, seed=seed) for seed in range(3)]
    commands: dict[str, list[str | Path]] = {
        "statistics": [sys.executable, "-c", STATISTICS, base, *map(str, TOKENS)],
        "search": [sys.executable, "-c", SEARCH, base, *map(str, TOKENS), *loras],
    }
    points = {}
    for kind, command in commands.items():
        runs = [run(command, folder) for _ in range(repeat)]
        seconds = statistics.median(float(found.output.split()[-1]) for found in runs)
        cpu = statistics.median(found.cpu for found in runs)
        private = int(statistics.median(found.private for found in runs))
        print(f"{gigabytes:.2f} GB, {kind}: {seconds:.2f} s", file=sys.stderr)
        points[kind] = Point(gigabytes, 3, 16, seconds, cpu, private, 0.0)
    shutil.rmtree(folder)
    return points


def tell_running(kind: str, points: Sequence[Point]) -> None:
    """Print the table of searches or statistics, and where their line comes to at 70B."""
    windows, length = TOKENS
    print(
        f"\n{kind}, {windows} windows of {length} tokens\n\n| GB | seconds | CPU, s | private, MB |\n|---|---|---|---|"
    )
    for p in points:
        print(f"| {p.gigabytes:.2f} | {p.seconds:.2f} | {p.cpu:.1f} | {p.private / 1e6:.0f} |")
    seconds, off = line([(p.gigabytes, p.seconds) for p in points])
    private, private_off = line([(p.gigabytes, p.private / 1e9) for p in points])
    print(
        f"\nBy a line through {len(points)} sizes (residual at most {off:.0%}; memory {private_off:.0%}), {LARGE:.0f} "
        f"GB would take {seconds / 60:.1f} minutes and {private:.0f} GB of private memory. This is an extrapolation.",
        flush=True,
    )


def line(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the value at 70B of a + b * size with the smallest relative residuals, and the largest of these."""
    rows = torch.tensor([(1.0, size) for size, _ in pairs], dtype=torch.float64)
    scale = 1 / torch.tensor([[value] for _, value in pairs], dtype=torch.float64)
    solution = torch.linalg.lstsq(rows * scale, torch.ones_like(scale), driver="gelsd").solution
    start, each = solution[:, 0].tolist()
    return start + LARGE * each, float((rows @ solution * scale - 1).abs().max())


def slope(pairs: Sequence[tuple[float, float]], floor: float) -> tuple[float, float] | None:
    """Return the least-squares slope of log(seconds - floor) over log(size), and the largest relative residual, of
    points above the floor.
    """
    grown = [(size, seconds - floor) for size, seconds in pairs if seconds - floor > NOISE * floor]
    if len(grown) < 2:
        return None
    logs = torch.tensor(grown, dtype=torch.float64).log()
    design = torch.stack([torch.ones(len(logs), dtype=torch.float64), logs[:, 0]], 1)
    solution = torch.linalg.lstsq(design, logs[:, 1:]).solution
    return float(solution[1]), float((design @ solution - logs[:, 1:]).expm1().abs().max())


def fit(points: Sequence[Point]) -> tuple[list[float], float]:
    """Return a, b and c of the module's docstring, and the largest relative residual."""
    rows = torch.tensor([(1, p.gigabytes, p.gigabytes * p.directions) for p in points], dtype=torch.float64)
    scale = 1 / torch.tensor([[p.seconds] for p in points], dtype=torch.float64)
    solution = torch.linalg.lstsq(rows * scale, torch.ones_like(scale), driver="gelsd").solution
    return solution[:, 0].tolist(), float((rows @ solution * scale - 1).abs().max())


def judge(kind: str, tiny: Point, sizes: Sequence[Point], counts: Sequence[Point]) -> list[str]:
    """Print the table and the growth of one kind, and return the bars that are missed."""
    print(
        f"\n{kind}\n\n| GB | vectors | rank | seconds | first touch of its memory, s | CPU, s | private, MB |\n"
        "|---|---|---|---|---|---|---|"
    )
    points = [tiny, *sizes, *(point for point in counts if point not in sizes)]
    for p in points:
        print(
            f"| {p.gigabytes:.2f} | {p.vectors} | {p.rank} | {p.seconds:.2f} | {p.touch:.2f} | {p.cpu:.1f} | "
            f"{p.private / 1e6:.0f} |"
        )
    missed = []
    unchanged = next(p for p in counts if p.vectors == 0)
    grown = {
        "size": slope([(p.gigabytes, p.seconds) for p in sizes], tiny.seconds),
        "vectors times rank": slope([(p.directions, p.seconds) for p in counts if p.vectors], unchanged.seconds),
    }
    print()
    for what, found in grown.items():
        if found is None:
            print(f"Growth with {what}: too little to measure.")
            continue
        steepness, residual = found
        print(f"Growth with {what}: slope {steepness:.2f}, residual at most {residual:.0%}.")
        missed += [f"{kind} grows with {what} by a slope of {steepness:.2f}"] * (steepness > STEEPEST)
    (start, each, direction), residual = fit(points)
    predicted = start + LARGE * (each + direction * 8 * 16)
    print(
        f"{start:.2f} s + {each:.2f} s a GB + {1000 * direction:.2f} ms a GB, vector and rank; residual at most "
        f"{residual:.0%}."
    )
    print(f"70B with 8 vectors of rank 16: {predicted / 60:.1f} minutes.", flush=True)
    seconds = {p.vectors: p.seconds for p in counts if p.rank == 16}
    if {3, 32} <= seconds.keys():
        times = seconds[32] / seconds[3]
        print(f"32 vectors of rank 16 cost {times:.2f} times 3.", flush=True)
        missed += [f"{kind} of 32 vectors costs {times:.2f} times 3"] * (times >= 3)
    return missed


def main() -> None:
    """Measure, and print tables and growth."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="folder for checkpoints (default: a temporary folder)")
    parser.add_argument(
        "--sizes",
        type=float,
        nargs="+",
        default=[0.3, 1, 4, 8],
        help="sizes of checkpoints in GB, each with 3 vectors of rank 16",
    )
    parser.add_argument(
        "--vectors", type=int, nargs="+", default=[1, 3, 8, 32], help="numbers of vectors, at the second size"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[16, 64], help="ranks, for each number of vectors")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument(
        "--running", type=float, nargs="*", default=[0.1, 0.3, 1], help="sizes in GB for searches and input statistics"
    )
    parser.add_argument("--only-running", action="store_true", help="no exports and loads")
    arguments = parser.parse_args()
    if len(arguments.sizes) < 2 or len(set(arguments.vectors) - {0}) < 2 or len(arguments.running) == 1:
        parser.error("growth takes two sizes and two numbers of vectors at least")
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    print(f"{torch.get_num_threads()} threads, medians of {arguments.repeat}.", flush=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        ran = [
            measure_running(Path(temporary) / str(size), shape_of(size), arguments.repeat) for size in arguments.running
        ]
    for kind in ran[0] if ran else ():
        tell_running(kind, [points[kind] for points in ran])
    if arguments.only_running:
        return
    usual = (3, 16)
    counted = arguments.sizes[1]
    varied = dict.fromkeys(
        [usual, (0, 16), *((count, rank) for rank in arguments.ranks for count in arguments.vectors)]
    )
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        at = Path(temporary)
        small = measure(at / "tiny", TINY, [usual], arguments.repeat)
        found = {
            size: measure(
                at / str(size), shape_of(size), list(varied) if size == counted else [usual], arguments.repeat
            )
            for size in arguments.sizes
        }
    missed = []
    for kind in small:
        sizes = [next(p for p in points[kind] if (p.vectors, p.rank) == usual) for points in found.values()]
        missed += judge(kind, small[kind][0], sizes, found[counted][kind])
    if missed:
        raise SystemExit("\nBars that are missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
