"""Extraction of a low-rank vector, compared with `mergekit-extract-lora` on the same checkpoints and rank.

Both run as commands, on the same number of threads, in turn. The shortest wall time of each counts. The error is
|B @ A - delta| / |delta| over the linear layers, which both tools store. mergekit needs an environment of its own:

    python -m venv mergekit && mergekit/bin/pip install mergekit==0.1.5
    python benchmarks/extraction.py --make wide --width 1024
    python benchmarks/extraction.py wide/base wide/finetuned --mergekit mergekit/bin/mergekit-extract-lora

`--make` writes a synthetic Llama of 4 layers with the given width. The time of a full SVD grows with the cube of the
width.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from dem_hub.checkpoints.reader import Checkpoint


def run(command: list[str]) -> float:
    """Run a command, and return its seconds."""
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    start = time.perf_counter()
    done = subprocess.run(command, env={**os.environ, **quiet}, capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def error(adapter: Path, base: Path, finetuned: Path, alpha: float) -> tuple[float, int]:
    """Return the relative error over the linear layers of the adapter, and their number."""
    factors = load_file(adapter / "adapter_model.safetensors")
    before, after = Checkpoint(base), Checkpoint(finetuned)
    squares = errors = 0.0
    count = 0
    for name in sorted(factors):
        if not name.endswith(".lora_A.weight"):
            continue
        key = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight") + ".weight"
        left, right = factors[name.replace("lora_A", "lora_B")].double(), factors[name].double()
        if key not in before or left.shape[0] != before[key].shape[0]:
            continue
        delta = after.read(key).double() - before.read(key).double()
        scale = alpha / right.shape[0] if alpha else 1.0
        errors += float((scale * left @ right - delta).square().sum())
        squares += float(delta.square().sum())
        count += 1
    return (errors / squares) ** 0.5, count


def make(folder: Path, width: int) -> None:
    """Write a base of random bf16 weights, and a fine-tune that adds strong directions and noise to every matrix."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=width,
        intermediate_size=11 * width // 4,
        num_hidden_layers=4,
        num_attention_heads=16,
        dtype="bfloat16",
    )
    model = LlamaForCausalLM(config).bfloat16()
    model.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in model.parameters():
            change = 2e-4 * torch.randn(parameter.shape)
            if parameter.ndim == 2:
                change.addmm_(torch.randn(len(parameter), 24), torch.randn(24, parameter.shape[1]), alpha=2e-4)
            parameter.add_(change)
    model.save_pretrained(folder / "finetuned")


def main() -> None:
    """Run both tools, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("base", type=Path, nargs="?")
    parser.add_argument("finetuned", type=Path, nargs="?")
    parser.add_argument("--mergekit", type=Path, help="the command mergekit-extract-lora")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="write a synthetic base and fine-tune, and exit")
    parser.add_argument("--width", type=int, default=1024, help="width of the model that --make writes (default: 1024)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--repeat", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.make is not None:
        make(arguments.make, arguments.width)
        return
    base, finetuned = arguments.base.resolve(), arguments.finetuned.resolve()
    print(
        f"{torch.get_num_threads()} threads.\n\n| rank | tool | wall, s | ratio | error | linear layers |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for rank in arguments.ranks:
        with tempfile.TemporaryDirectory() as folder:
            ours, theirs = Path(folder, "ours"), Path(folder, "theirs")
            commands = {
                "dem_hub": [
                    sys.executable,
                    "-m",
                    "dem_hub.cli",
                    "extract",
                    base,
                    finetuned,
                    "-o",
                    ours,
                    "--codec",
                    "lowrank",
                    "--rank",
                    rank,
                ],
                "mergekit": [
                    arguments.mergekit,
                    "--model",
                    finetuned,
                    "--base-model",
                    base,
                    "--out-path",
                    theirs,
                    "--max-rank",
                    rank,
                    "--embed-lora",
                ],
            }
            seconds = {
                name: min(run(list(map(str, command))) for _ in range(arguments.repeat))
                for name, command in commands.items()
            }
            for name, adapter, alpha in (("dem_hub", ours, 0.0), ("mergekit", theirs, float(rank))):
                relative, count = error(adapter, base, finetuned, alpha)
                ratio = seconds[name] / seconds["dem_hub"]
                print(f"| {rank} | {name} | {seconds[name]:.1f} | {ratio:.1f} | {relative:.4f} | {count} |", flush=True)


if __name__ == "__main__":
    main()
