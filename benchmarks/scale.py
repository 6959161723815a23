"""Growth of the cost of exporting and loading with the size of the model, the number of vectors, and their rank.

For each size, the script makes a Llama checkpoint of random bf16 weights (larger ones are wider) and PEFT LoRAs with
random factors on all linear layers. It deletes them after the measurement. An export is timed as a whole process.
Loading is timed inside the process, without imports, and every tensor is read once in float32, a piece at a time. (A
float32 copy of a whole tensor above 32 MB is new memory each time, and would dominate the time.) The runs take turns,
the first of each warms the page cache, and medians count.

    python benchmarks/scale.py                                              # Linux; 21 GB of disk, 24 GB of memory
    python benchmarks/scale.py --sizes 0.3 0.6 --vectors 1 3 --repeat 1     # to see it work, in two minutes

Growth is the slope of log(seconds - constant part) over log(size), or over log(vectors times rank): 1 is linear. The
constant part is measured too: a model of 0.3 MB, and vectors whose coefficients are 0. Points within 5 % of it are
left out of the slope. The script also measures how long the system takes to hand out the memory of a loaded model. On
a virtual machine, gigabytes that were not used lately cost several times as much as the first. The bars are for the
whole seconds. A fit to all points gives

    seconds = a + b * gigabytes + c * gigabytes * vectors * rank

with the smallest relative residuals. From it follows the time for 70B parameters with 8 vectors, if this machine had
the disk and memory. Bars: no slope is above 1.1, and 32 vectors of rank 16 take less than 3 times as long as 3 of
them.
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
import dem_hub.models.loading  # imports are not counted
base, coefficient, *vectors = sys.argv[1:]
start = time.perf_counter()
model = DEMModel.from_pretrained(base, vectors=dict.fromkeys(vectors, float(coefficient)))
sum(float(piece.float().sum()) for parameter in model.parameters() for piece in parameter.flatten().split(1 << 20))
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
        f"\n{kind}\n\n| GB | vectors | rank | seconds | first touch of its memory, s | CPU, s | private, MB |\n|---|---|---|---|---|---|---|"
    )
    points = [tiny, *sizes, *(point for point in counts if point not in sizes)]
    for p in points:
        print(
            f"| {p.gigabytes:.2f} | {p.vectors} | {p.rank} | {p.seconds:.2f} | {p.touch:.2f} | {p.cpu:.1f} | {p.private / 1e6:.0f} |"
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
        f"{start:.2f} s + {each:.2f} s a GB + {1000 * direction:.2f} ms a GB, vector and rank; residual at most {residual:.0%}."
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
    arguments = parser.parse_args()
    if len(arguments.sizes) < 2 or len(set(arguments.vectors) - {0}) < 2:
        parser.error("growth takes two sizes and two numbers of vectors at least")
    usual = (3, 16)
    counted = arguments.sizes[1]
    varied = dict.fromkeys(
        [usual, (0, 16), *((count, rank) for rank in arguments.ranks for count in arguments.vectors)]
    )
    if arguments.folder is not None:
        arguments.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        at = Path(temporary)
        print(f"{torch.get_num_threads()} threads, medians of {arguments.repeat}.", flush=True)
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
