"""What a search costs: its seconds, against those of its forward passes alone, and its memory at a large vocabulary.

    python benchmarks/search_cost.py --demo dem-hub-demo --repeat 3     # the folder of a finished `dem-hub demo`
    python benchmarks/search_cost.py --vocabulary 131072 --tokens 16000

With `--demo`, the demo's three vectors are searched with some 4,500 tokens, of which a quarter is held out, in a process
of its own. Another process runs the base over the same windows, in the same batches, and does nothing else: once over
those to search on and once over those that are held out. The seconds of these, times the passes that the search made,
are the passes alone. The two take turns. The bar is 1.3 times.

Without it, a Llama of random weights with a large vocabulary is searched for three LoRAs. The memory is the private
memory of the process (`processes.py`), less that of a process which loads the same model, merged in float32, and
runs one window. The bar is 2 GiB.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from processes import run
from regmean import search_cost, search_data
from synthetic import Size, make_adapter, make_checkpoint
from transformers import AutoModelForCausalLM

from dem_hub.defaults import BATCH_SIZE, HELD_OUT, MAX_LENGTH, SEED
from dem_hub.evaluation.likelihood import as_inputs, batches
from dem_hub.evaluation.reader import Reader, read_and_split
from dem_hub.evaluation.windows import Window

SLOWEST = 1.3
MOST = 2 << 30
GIB = 1 << 30
WINDOW = 512  # tokens
ONE_WINDOW = """
import sys, torch
from dem_hub import DEMModel
base, windows, length, *vectors = sys.argv[1:]
model = DEMModel.from_pretrained(base, vectors=dict.fromkeys(vectors, 0.5), dtype="float32")
with torch.inference_mode():
    model(torch.full((1, 16), 4))
"""
SEARCH = """
import json, sys, torch
from pathlib import Path
from dem_hub import search_coefficients
base, windows, length, *vectors = sys.argv[1:]
vocabulary = json.loads(Path(base, "config.json").read_text())["vocab_size"]
shape, generator = (int(windows), int(length)), torch.Generator().manual_seed(0)
rows = [{"input_ids": ids} for ids in torch.randint(4, vocabulary, shape, generator=generator).tolist()]
found = search_coefficients(base, vectors, {"random": rows})
print(found.num_forward, found.num_forward_held_out, found.seconds)
"""


def passes_alone(folder: Path) -> tuple[float, float]:
    """Return the seconds of a forward pass of the base over the demo's data to search on, and over its held-out data."""
    model = AutoModelForCausalLM.from_pretrained(folder / "base", dtype="float32").eval()
    data = search_data(folder)
    reader = Reader.of_model(model.config, None, MAX_LENGTH, packing=False)
    return tuple(_seconds(model, part) for part in read_and_split(reader, data, HELD_OUT, SEED))  # type: ignore[return-value]


def _seconds(model: torch.nn.Module, data: Mapping[str, list[Window]]) -> float:
    start = time.perf_counter()
    with torch.inference_mode():
        for windows in data.values():
            for places in batches(windows, BATCH_SIZE, model.config.vocab_size):
                inputs = as_inputs([windows[place] for place in places], model.device)
                inputs.pop("labels")
                model(**inputs, use_cache=False)
    return time.perf_counter() - start


def print_seconds(folder: Path, repeat: int) -> bool:
    """Print the seconds of searches and of their passes alone; return whether their median ratio is within the bar."""
    print("| search, s | passes | held-out passes | passes alone, s | ratio |\n|---|---|---|---|---|")
    ratios = []
    for _ in range(repeat):
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            searched, held_out = pool.submit(passes_alone, folder).result()
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            cost = pool.submit(search_cost, folder, with_regmean=False).result()
        alone = cost.passes * searched + cost.held_out_passes * held_out
        ratios.append(cost.seconds / alone)
        print(
            f"| {cost.seconds:.1f} | {cost.passes:g} | {cost.held_out_passes:g} | {alone:.1f} | {ratios[-1]:.2f} |",
            flush=True,
        )
    ratio = statistics.median(ratios)
    print(f"\nThe median ratio is {ratio:.2f}; the bar is {SLOWEST}.")
    return ratio <= SLOWEST


def print_memory(folder: Path, vocabulary: int, tokens: int) -> bool:
    """Print the memory of a search beside its model; return whether it is within the bar."""
    base = make_checkpoint(folder / "base", Size(256, 704, vocabulary, 4))
    loras = [make_adapter(folder / f"lora-{seed}", base, seed=seed) for seed in range(3)]
    sizes = [str(tokens // WINDOW), str(WINDOW)]
    loaded, searched = (
        run([sys.executable, "-c", script, base, *sizes, *loras], folder) for script in (ONE_WINDOW, SEARCH)
    )
    beside = searched.private - loaded.private
    passes, held_out, seconds = map(float, searched.output.split()[-3:])
    print(
        f"{tokens} tokens, a vocabulary of {vocabulary:,}: the search takes {searched.private / GIB:.2f} GiB, and the "
        f"model alone {loaded.private / GIB:.2f}. The search takes {beside / GIB:.2f} GiB more; the bar is "
        f"{MOST / GIB:.0f}. {passes:g} passes and {held_out:g} over held-out data took {seconds:.0f} s."
    )
    return beside <= MOST


def main() -> int:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, help="folder of a finished dem-hub demo")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=131_072)
    parser.add_argument("--tokens", type=int, default=16_000)
    arguments = parser.parse_args()
    if arguments.demo is not None:
        return int(not print_seconds(arguments.demo, arguments.repeat))
    with tempfile.TemporaryDirectory() as folder:
        return int(not print_memory(Path(folder), arguments.vocabulary, arguments.tokens))


if __name__ == "__main__":
    sys.exit(main())
