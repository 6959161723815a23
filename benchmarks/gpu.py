"""What an accelerator makes of a merge: first whether it is right, then seconds and memory, against plain loading.

    python benchmarks/gpu.py --out results                              # eight minutes on one large GPU; 40 GB of disk
    python benchmarks/gpu.py --out results --device cpu --sizes tiny    # to see it work

The script says at once which libraries are missing. It runs `tests/contracts/test_gpu.py` on the device. Then, for each
size, it makes a Llama of random bf16 weights on the device and writes it, with three LoRAs of rank 16 and three fine-tunes
that changed every matrix, which it extracts with `codec="auto"`. It measures

* loading of the base alone by transformers, of base + three LoRAs, and of base + three `auto` vectors (aim: 1.15 times
  plain loading), from the page cache, and new coefficients in place;
* the highest memory of the device while it does so;
* a search over the LoRAs, against its forward passes alone;
* extraction, and encoding and decoding of one matrix with each codec.

All times are those of the device, which is waited for. Runs take turns, the first of each is not counted, and medians count.
What does not fit into `--seconds` is left out, and the table says so. `gpu.md` and `gpu.json` in the folder are written after
each measurement, so that a run that was stopped is not lost.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
COEFFICIENT = 0.3
CODECS = ("dense", "lowrank", "lrsign", "sign", "int4", "int8", "random", "exact")
SIZES = {
    "tiny": (64, 128, 256, 1),
    "1B": (2048, 8192, 128_256, 14),  # 1.4 billion parameters
    "8B": (4096, 14_336, 128_256, 28),  # 7.9 billion: without grouped attention, so with fewer layers
}
REPEATS = {"tiny": 1, "1B": 5, "8B": 3}
TOKENS = {"tiny": (6, 12), "1B": (16, 256), "8B": (16, 256)}  # windows of a search, and their length


@dataclass
class Report:
    """What was measured. Each row is (size, what, value, unit, times plain loading or `None`)."""

    folder: Path
    machine: dict[str, str]
    deadline: float
    checks: str = "not run"
    rows: list[tuple[str, str, float, str, float | None]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def add(self, size: str, what: str, value: float, unit: str = "s", times: float | None = None) -> None:
        """Note a figure, print it, and write all of them."""
        self.rows.append((size, what, value, unit, times))
        print(f"{size}: {what}: {value:.3f} {unit}", flush=True)
        self.write()

    def measure(self, label: str, seconds: float, step: Callable[[], None]) -> None:
        """Take a step that is thought to take so many seconds, if there is time. An error is noted."""
        if time.perf_counter() + seconds > self.deadline:
            self.left_out.append(f"{label}: no time was left")
            return
        try:
            step()
        except Exception as error:  # noqa: BLE001  the others are worth having
            self.left_out.append(f"{label}: {type(error).__name__}: {str(error)[:500]}")
        self.write()

    def write(self) -> None:
        """Write the table and the JSON."""
        lines = [f"{key}: {value}" for key, value in self.machine.items()]
        lines += [f"tests/contracts/test_gpu.py: {self.checks}", ""]
        lines += ["| size | what | figure | times plain loading |", "|---|---|---|---|"]
        for size, what, value, unit, times in self.rows:
            lines.append(f"| {size} | {what} | {value:.3f} {unit} | {'' if times is None else f'{times:.2f}'} |")
        lines += ["", *(f"* left out: {line}" for line in self.left_out)]
        (self.folder / "gpu.md").write_text("\n".join(lines) + "\n", "utf-8")
        data = {**asdict(self), "folder": str(self.folder), "deadline": None}
        (self.folder / "gpu.json").write_text(json.dumps(data, indent=2), "utf-8")


def missing() -> list[str]:
    """Return the libraries that are not installed, or are too old, by what `pyproject.toml` asks for."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    faults = []
    for text in [*project["dependencies"], "pytest>=8", "hypothesis>=6"]:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            found = version(wanted.name)
        except PackageNotFoundError:
            faults.append(f"{text} (not installed)")
            continue
        if not wanted.specifier.contains(found, prereleases=True):
            faults.append(f"{text} ({found} is installed)")
    return faults


def check(device: str) -> str:
    """Run the tests of correctness on the device, and return what pytest says of them."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        device,
        "tests/contracts/test_gpu.py",
    ]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(done.stdout[-6000:], done.stderr[-2000:], flush=True)
    return done.stdout.strip().splitlines()[-1] if done.stdout.strip() else done.stderr[-500:]


class Bench:
    """The measurements of one size on one device."""

    def __init__(self, report: Report, folder: Path, device: str, name: str) -> None:
        from synthetic import Size

        self.report = report
        self.folder = folder / name
        self.device = device
        self.name = name
        self.size = Size(*SIZES[name])
        self.repeat = REPEATS[name]
        self.loras: list[str] = []
        self.vectors: list[str] = []

    def run(self) -> None:
        """Take all measurements of this size, the most important first."""
        slow = {"tiny": 1.0, "1B": 5.0, "8B": 30.0}[self.name]
        measure = self.report.measure
        measure(f"{self.name}: base and LoRAs", slow, self.make)
        measure(f"{self.name}: loading with LoRAs", 2 * slow, lambda: self.load("3 LoRAs", self.loras))
        measure(f"{self.name}: auto vectors", 3 * slow, self.extract)
        measure(f"{self.name}: loading with auto vectors", 2 * slow, lambda: self.load("3 auto vectors", self.vectors))
        measure(f"{self.name}: a search", slow, self.search)
        measure(f"{self.name}: codecs", slow, self.codecs)

    def make(self) -> None:
        """Write the base and the LoRAs."""
        from synthetic import make_adapter, make_checkpoint

        self.base = make_checkpoint(self.folder / "base", self.size, device=self.device)
        self.loras = [str(make_adapter(self.folder / f"lora-{seed}", self.base, seed=seed)) for seed in range(3)]
        count = sum(file.stat().st_size for file in self.base.glob("*.safetensors")) / 2
        self.report.add(self.name, "parameters", count / 1e9, "billion")

    def load(self, what: str, vectors: list[str]) -> None:
        """Load the base alone and with vectors, in turns, and change the coefficients in place."""
        from transformers import LlamaForCausalLM

        from dem_hub import DEMModel

        if not vectors:
            raise RuntimeError("there are no vectors")
        place = {"device_map": {"": self.device}, "dtype": "bfloat16"}
        weights = dict.fromkeys(vectors, COEFFICIENT)
        loaders: dict[str, Callable[[], Any]] = {
            "load the base alone": lambda: LlamaForCausalLM.from_pretrained(self.base, **place),
            f"load with {what}": lambda: DEMModel.from_pretrained(self.base, vectors=weights, **place),
        }
        seconds: dict[str, list[float]] = {label: [] for label in loaders}
        highest: dict[str, float] = {}
        for turn in range(self.repeat + 1):
            for label, loader in loaders.items():
                self.forget()
                taken, model = self.timed(loader)
                if turn:
                    seconds[label].append(taken)
                highest[label] = self.peak()
                del model
        plain, merged = (statistics.median(seconds[label]) for label in loaders)
        for label, value in zip(loaders, (plain, merged), strict=True):
            self.report.add(self.name, label, value, "s", value / plain)
            self.report.add(self.name, f"{label}: peak memory of the device", highest[label], "GB")
        self.forget()
        model = loaders[f"load with {what}"]()
        times = []
        for turn in range(self.repeat + 1):
            new = dict.fromkeys(vectors, COEFFICIENT + 0.01 * (turn + 1))
            taken, _ = self.timed(lambda new=new: model.dem.set_coefficients(new))  # type: ignore[misc]
            times.append(taken)
        value = statistics.median(times[1:])
        self.report.add(self.name, f"new coefficients of {what}, in place", value, "s", value / plain)

    def extract(self) -> None:
        """Extract three fine-tunes with `auto`, one after the other, so that one of them is on the disk at a time."""
        from synthetic import make_checkpoint

        from dem_hub import DistributionVector

        for seed in range(3):
            finetuned = make_checkpoint(
                self.folder / "finetuned", self.size, "every", self.base, seed=seed, device=self.device
            )
            self.forget()
            taken, vector = self.timed(
                lambda finetuned=finetuned: DistributionVector.extract(self.base, finetuned, device=self.device)  # type: ignore[misc]
            )
            self.report.add(self.name, f"extract vector {seed + 1} of 3 with auto", taken)
            self.report.add(self.name, "extraction: peak memory of the device", self.peak(), "GB")
            vector.save_pretrained(self.folder / f"auto-{seed}")
            self.vectors.append(str(self.folder / f"auto-{seed}"))
            shutil.rmtree(finetuned)

    def search(self) -> None:
        """Search the coefficients of the LoRAs, and run as many forward passes alone."""
        import torch

        from dem_hub import DEMModel, search_coefficients
        from dem_hub.evaluation.likelihood import likelihood
        from dem_hub.evaluation.windows import Window

        count, length = TOKENS[self.name]
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(4, self.size.vocabulary, (2 * count, length), generator=generator).tolist()
        place = {"device_map": {"": self.device}, "dtype": "bfloat16"}
        self.forget()
        taken, result = self.timed(
            lambda: search_coefficients(
                self.base, self.loras, {"random": [{"input_ids": row} for row in ids]}, held_out=0.5, **place
            )
        )
        peak = self.peak()
        self.forget()
        model = DEMModel.from_pretrained(self.base, vectors=dict.fromkeys(self.loras, COEFFICIENT), **place)
        data = [Window.of(row) for row in ids[:count]]
        likelihood(model, data)
        one, _ = self.timed(lambda: likelihood(model, data))
        passes = result.num_forward + result.num_forward_held_out
        self.report.add(self.name, f"a search of 3 LoRAs, {passes} passes over {count * length} tokens", taken)
        self.report.add(self.name, "one forward pass alone", one)
        self.report.add(self.name, "the search, over its forward passes alone", taken / (passes * one), "times")
        self.report.add(self.name, "a search of 3 LoRAs: peak memory of the device", peak, "GB")

    def codecs(self) -> None:
        """Encode and decode one square matrix with each codec."""
        import torch

        from dem_hub.checkpoints.lazy import InMemory
        from dem_hub.codecs import get_codec
        from dem_hub.codecs.component import Component

        width = self.size.width
        generator = torch.Generator(self.device).manual_seed(0)
        base = torch.randn(width, width, generator=generator, device=self.device).mul_(0.02).bfloat16()
        delta = torch.randn(width, width, generator=generator, device=self.device).mul_(5e-4)
        finetuned = (base.float() + delta).bfloat16()
        index = (slice(0, width), slice(0, width))
        for name in CODECS:
            codec = get_codec(name, {})
            codec.encode(delta, base, finetuned)
            taken, parts = self.timed(lambda codec=codec: codec.encode(delta, base, finetuned))  # type: ignore[misc]
            self.report.add(self.name, f"encode {width} x {width} with {name}", taken)
            lazy = {part: InMemory(tensor.cpu()) for part, tensor in parts.items()}
            stored = Component(codec, lazy, (width, width))
            kept = InMemory(base.cpu())

            def decode(stored: Any = stored, kept: Any = kept) -> Any:
                return stored.decode(kept, index, torch.device(self.device))

            decode()
            self.report.add(self.name, f"decode {width} x {width} with {name}", self.timed(decode)[0])

    def timed(self, work: Callable[[], Any]) -> tuple[float, Any]:
        """Return the seconds that some work takes, to its end on the device, and what it returns."""
        self.wait()
        start = time.perf_counter()
        result = work()
        self.wait()
        return time.perf_counter() - start, result

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        import torch

        if self.device != "cpu":
            torch.accelerator.synchronize()

    def forget(self) -> None:
        """Free the device's memory, and begin to measure its peak."""
        import gc

        import torch

        gc.collect()
        if self.device.startswith("cuda"):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> float:
        """Return the highest memory of the device since `forget`, in GB; 0 where it is not known."""
        import torch

        if not self.device.startswith("cuda"):
            return 0.0
        return float(torch.cuda.max_memory_allocated()) / 1e9


def main() -> None:
    """Check, measure, and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for gpu.md and gpu.json")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["1B", "8B"])
    parser.add_argument("--seconds", type=float, default=480.0, help="begin nothing that would not end by then")
    parser.add_argument("--no-checks", action="store_true", help="measure only")
    arguments = parser.parse_args()
    start = time.perf_counter()
    arguments.out.mkdir(parents=True, exist_ok=True)

    faults = missing()
    if faults:
        raise SystemExit("Install first:\n" + "\n".join(f"  {fault}" for fault in faults))
    sys.path.insert(0, str(ROOT))  # dem_hub itself need not be installed
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(f"torch {torch.__version__} sees no CUDA device. Give --device cpu to try the script.")
    machine = {"torch": torch.__version__, "transformers": version("transformers"), "processors": str(os.cpu_count())}
    if arguments.device == "cuda":
        machine["device"] = torch.cuda.get_device_name()
    report = Report(arguments.out, machine, start + arguments.seconds)
    if not arguments.no_checks:
        report.checks = check(arguments.device)
        print(f"checks: {report.checks}", flush=True)
    with tempfile.TemporaryDirectory(prefix="gpu-") as scratch:
        os.environ["HF_HUB_OFFLINE"] = "1"
        for name in arguments.sizes:
            Bench(report, Path(scratch), arguments.device, name).run()
            shutil.rmtree(Path(scratch) / name, ignore_errors=True)
    report.add("all", "seconds of the whole script", time.perf_counter() - start)
    print((arguments.out / "gpu.md").read_text("utf-8"))
    if "failed" in report.checks or "error" in report.checks:
        raise SystemExit("Correctness failed on this device; the figures count for nothing.")


if __name__ == "__main__":
    main()
