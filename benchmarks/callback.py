"""Seconds and memory that `DEMCallback` costs in a real fine-tune: the same run without it and with it.

Each run is a process of its own. It trains all weights of SmolLM2-135M in float32, with bf16 autocast if the
processor has it, on sequences of 128 tokens, four at a time, and saves the model every 50 steps. The script reports

    wall      seconds of `trainer.train()`, without and with the callback, in turn, `--pairs` times
    inside    seconds in the callback's own events: the overhead without the noise between two runs
    memory    the highest RssAnon during those events, minus RssAnon when they began ("private" as in `processes.py`)

    python benchmarks/finetunes.py finetunes       # the base and the texts
    python benchmarks/callback.py finetunes --steps 100
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import torch
from processes import private_memory
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from dem_hub import DEMCallback
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.demo.training import pack
from dem_hub.evaluation.rows import read_rows
from dem_hub.training.callback import When

MIB = 1 << 20


class Measured(DEMCallback):
    """A callback that counts the seconds and the memory of its own events."""

    seconds = 0.0
    memory = 0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Sample the memory every 5 ms while the block runs."""
        pid, done, highest = int(Path("/proc/self").resolve().name), threading.Event(), [0]
        before = private_memory(pid)

        def sample() -> None:
            while not done.wait(0.005):
                highest[0] = max(highest[0], private_memory(pid))

        thread = threading.Thread(target=sample)
        thread.start()
        start = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - start
        done.set()
        thread.join()
        self.memory = max(self.memory, highest[0] - before)

    def on_train_begin(self, *positional: Any, **named: Any) -> None:
        """Measure this event."""
        with self.measuring():
            super().on_train_begin(*positional, **named)

    def on_save(self, *positional: Any, **named: Any) -> None:
        """Measure this event."""
        with self.measuring():
            super().on_save(*positional, **named)

    def on_train_end(self, *positional: Any, **named: Any) -> None:
        """Measure this event."""
        with self.measuring():
            super().on_train_end(*positional, **named)


def train(folder: Path, steps: int, save_steps: int, codec: str | None, when: When) -> dict[str, float]:
    """Do one run, and return its figures."""
    base = folder / "base"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    rows = pack(
        AutoTokenizer.from_pretrained(base),
        [row["text"] for row in read_rows(folder / "texts" / "code.train.jsonl")[:200]],
    )
    with tempfile.TemporaryDirectory(dir=folder) as output:
        arguments = TrainingArguments(
            output, max_steps=steps, save_steps=save_steps, save_only_model=True, per_device_train_batch_size=4, learning_rate=5e-5,
            lr_scheduler_type="constant", report_to="none", disable_tqdm=True, dataloader_pin_memory=False, seed=0, logging_steps=save_steps,
            bf16="AVX512" in torch.backends.cpu.get_cpu_capability(), use_cpu=True,
        )  # fmt: skip
        callback = Measured(base, when=when, codec=codec) if codec else None
        trainer = Trainer(model, arguments, train_dataset=rows, callbacks=[callback] if callback else None)
        start = time.perf_counter()
        trainer.train()
        figures = {"wall": time.perf_counter() - start}
        if callback is not None:
            figures |= {"inside": callback.seconds, "memory": callback.memory / MIB, "bytes": callback.vector.nbytes}
    return figures


def main() -> None:
    """Run all pairs, or (`--run`) one run for the process that asked for it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with base and texts, made by finetunes.py")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--save-steps", type=int, default=50)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--codec", default="auto")
    parser.add_argument(
        "--when",
        choices=get_args(When)[:2],
        default="save",
        help="save a vector at each save (default), or only at the end",
    )
    parser.add_argument("--run", choices=("with", "without"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        codec = options.codec if options.run == "with" else None
        print(json.dumps(train(options.folder, options.steps, options.save_steps, codec, options.when)))
        return
    base = Checkpoint(options.folder / "base")
    elements = [info.nbytes // info.torch_dtype.itemsize for info in base.values()]
    bound = (0.1 * 4 * sum(elements) + 3 * 4 * max(elements)) / MIB
    print(
        f"{torch.get_num_threads()} threads, {options.steps} steps, a save every {options.save_steps}, codec "
        f"{options.codec}, when={options.when}."
    )
    print(
        "\n| without, s | with, s | inside, s | inside / without | memory, MiB | bound, MiB |\n|---|---|---|---|---|---|",
        flush=True,
    )
    for _ in range(options.pairs):
        found = {}
        for run in ("without", "with"):
            done = subprocess.run(
                [sys.executable, *sys.argv, "--run", run], capture_output=True, text=True, check=False
            )
            if done.returncode != 0:
                raise SystemExit(done.stderr[-3000:])
            found[run] = json.loads(done.stdout.splitlines()[-1])
        before, after = found["without"]["wall"], found["with"]
        share = f"{100 * after['inside'] / before:.1f} %"
        cells = (
            f"{before:.1f}",
            f"{after['wall']:.1f}",
            f"{after['inside']:.1f}",
            share,
            f"{after['memory']:.0f}",
            f"{bound:.0f}",
        )
        print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
