"""Peak private memory of extracting, exporting and loading, on synthetic Llama checkpoints.

For each size, three checkpoints are made: a base of random bf16 weights, "every", which differs from the base in all
matrices, and "lora", which differs by rank-16 products in the layers. Each step runs in a process of its own:

    step                                               its bound
    extract: dense in float32; auto; exact; lowrank    1 GiB + 2 x the largest tensor in float32
    merge: base + 3 vectors, written as a folder       1 GiB + 2 x the largest tensor in float32
    from_pretrained: base + 3 compact vectors, bf16    model + 3 x the largest tensor in float32 + vectors

The bounds are those that `dem-hub plan` counts with (`dem_hub/planning/bounds.py`).

"Private" memory is defined in `processes.py`. It does not count the weights of a loaded model that no vector changes,
because transformers leaves them mapped. The memory of a process that only imports the same libraries is subtracted.
`--layers` varies the number of tensors at one width; the memory of extracting and merging must not grow with it.
Linux only. 40 layers are 4.6 GB a checkpoint and need 35 GB of disk in all.

    python benchmarks/memory.py                                 # in a temporary folder
    python benchmarks/memory.py --folder bench --layers 10 40   # keeps the checkpoints, and uses them again
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from processes import run
from synthetic import RANK, Size, make_checkpoint

from dem_hub.planning.bounds import loading_bound, streaming_bound

WIDTH, INNER, VOCABULARY = 2048, 5504, 64000
GIB = 1 << 30
DEM_HUB = [sys.executable, "-m", "dem_hub.cli"]
# Four tensors in flight, the most that transformers' loader takes on any machine.
LOAD = """
import sys
from transformers import core_model_loading
core_model_loading.GLOBAL_WORKERS = 4
from dem_hub import DEMModel
DEMModel.from_pretrained(sys.argv[1], vectors={name: 0.3 for name in sys.argv[2:]}, dtype="bfloat16")
"""
IMPORTS = {
    "extract": "import dem_hub.cli.app, dem_hub.vectors.vector; from transformers import LlamaForCausalLM",
    "merge": "import dem_hub.cli.app, dem_hub.models.export, dem_hub.merging.opening, dem_hub.files.strict_json",
    "from_pretrained": "from dem_hub import DEMModel; from transformers import LlamaForCausalLM",
}


def size_of(folder: Path) -> int:
    """Return the bytes of the tensors in a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def measure(folder: Path, layers: int, baselines: dict[str, int]) -> list[tuple[str, int, int]]:
    """Run every step on one size, and return (step, figure, bound) for each."""
    at = folder / f"{layers}-layers"
    size = Size(WIDTH, INNER, VOCABULARY, layers)
    base = make_checkpoint(at / "base", size)
    every = make_checkpoint(at / "every", size, "every", base)
    lora = make_checkpoint(at / "lora", size, "lora", base)
    rows = []

    def step(kind: str, label: str, bound: int, command: list[str]) -> None:
        rows.append((label, run(command, at).private - baselines[kind], bound))
        print(f"{layers} layers, {label}: {rows[-1][1] / GIB:.2f} of {bound / GIB:.2f} GiB", file=sys.stderr)

    options = {
        "dense": (every, "--codec dense --dtype float32"),
        "auto": (every, "--codec auto"),
        "exact": (every, "--codec exact"),
        "every-16": (every, f"--codec lowrank --rank {RANK}"),
        "lora-16": (lora, f"--codec lowrank --rank {RANK}"),
        "lora-8": (lora, "--codec lowrank --rank 8"),
    }
    for name, (finetuned, codec) in options.items():
        shutil.rmtree(at / name, ignore_errors=True)
        label = f"extract {codec.replace('--', '')}, {finetuned.name}"
        command = [*DEM_HUB, "extract", str(base), str(finetuned), "-o", str(at / name), *codec.split()]
        step("extract", label, streaming_bound(size.largest), command)
    for names in (("dense", "every-16", "lora-16"), ("auto", "exact", "lora-16"), ("auto", "lora-16", "lora-8")):
        vectors = [word for name in names for word in ("--vector", f"{at / name}=0.3")]
        command = [*DEM_HUB, "merge", str(base), *vectors, "-o", str(at / "merged")]
        step("merge", f"merge, base + {' + '.join(names)}", streaming_bound(size.largest), command)
        shutil.rmtree(at / "merged")
    bound = loading_bound(size_of(base), size.largest, sum(size_of(at / name) for name in names))
    step("from_pretrained", f"from_pretrained, base + {' + '.join(names)}", bound,
         [sys.executable, "-c", LOAD, str(base), *(str(at / name) for name in names)])  # fmt: skip
    for name in options:
        shutil.rmtree(at / name)
    return rows


def main() -> None:
    """Measure all sizes and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="where to keep checkpoints (default: a temporary folder)")
    parser.add_argument("--layers", type=int, nargs="+", default=[10, 40], help="model sizes (default 10 40)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        baselines = {kind: run([sys.executable, "-c", code], folder).private for kind, code in IMPORTS.items()}
        rows = {layers: measure(folder, layers, baselines) for layers in arguments.layers}
        imports = ", ".join(f"{kind} {value >> 20}" for kind, value in baselines.items())
        largest = Size(WIDTH, INNER, VOCABULARY, 1).largest / GIB
        print(f"Largest tensor in float32: {largest:.2f} GiB. Taken off for imports, MiB: {imports}.\n")
        print("| layers | checkpoint, GB | step | peak private memory, GiB | bound, GiB | holds |")
        print("|---|---|---|---|---|---|")
        for layers, measured in rows.items():
            size = size_of(folder / f"{layers}-layers" / "base") / 1e9
            for label, figure, bound in measured:
                holds = "yes" if figure <= bound else "NO"
                cells = (layers, f"{size:.1f}", label, f"{figure / GIB:.2f}", f"{bound / GIB:.2f}", holds)
                print("| " + " | ".join(map(str, cells)) + " |")
    if any(figure > bound for measured in rows.values() for _, figure, bound in measured):
        raise SystemExit("a bound is broken")


if __name__ == "__main__":
    main()
