"""The share of real fine-tunes that each codec keeps, alone and in a weighted sum, and its size.

    python benchmarks/finetunes.py finetunes
    python benchmarks/codecs.py alone finetunes full/gsm full/code full/code-long    # a table for each fine-tune
    python benchmarks/codecs.py sums finetunes full/gsm full/code full/reference     # base + sum of coefficient * vector
    python benchmarks/codecs.py adapters finetunes lora-merged/gsm lora-merged/code  # fine-tunes that were LoRAs

"bytes" compares the vector's safetensors files with the delta in bf16, two bytes an element. "kept" is a share of the
fine-tune's improvement over the base, in mean loss per token. It is what is left after base + vector was rounded to
bf16 as dem_hub does (stochastically, mean of `--seeds` seeds). The fine-tune itself, not rounded, is 100 %. Models
are evaluated in float32. For sums, the coefficients are searched with whole vectors in bf16, and the improvement of
these vectors is 100 % for each distribution. Seconds are wall time of extraction (two checkpoints are read, encoded,
measured and written) and of decoding every tensor.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dem_hub import DEMModel, DistributionVector, search_coefficients
from dem_hub.checkpoints.base_model import Base
from dem_hub.codecs import to_dense
from dem_hub.evaluation.likelihood import evaluate
from dem_hub.evaluation.reader import Reader
from dem_hub.evaluation.windows import Window
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.numerics.slices import full_index

WINDOW = 256  # tokens
CODECS: dict[str, dict[str, Any]] = {
    "dense float32": {"codec": "dense"},
    "dense bfloat16": {"codec": "dense", "dtype": "bfloat16"},
    "int8": {"codec": "int8"},
    "int4": {"codec": "int4"},
    "nf4": {"codec": "nf4"},
    "auto": {"codec": "auto"},
    "auto 5%": {"codec": "auto", "max_bytes": "5%"},
    "auto 3%": {"codec": "auto", "max_bytes": "3%"},
    "auto 2%": {"codec": "auto", "max_bytes": "2%"},
    "auto 1.5%": {"codec": "auto", "max_bytes": "1.5%"},
    "lrsign": {"codec": "lrsign"},
    "sign": {"codec": "sign"},
    "random 10%, 4 bits": {"codec": "random", "density": 0.1},
    "lowrank 32": {"codec": "lowrank", "rank": 32, "dtype": "bfloat16"},
    "lowrank 128": {"codec": "lowrank", "rank": 128, "dtype": "bfloat16"},
}
EXACT = {"exact": {"codec": "exact"}}


def read_windows(folder: Path, name: str, side: str, tokens: int) -> list[Window]:
    """Return windows with about so many tokens in all, evenly spread over the validation text of a fine-tune."""
    file = folder / "texts" / f"{Path(name).name.split('-')[0]}.{side}.jsonl"
    windows = Reader(lambda: AutoTokenizer.from_pretrained(folder / "base"), WINDOW).windows(file)
    count = min(len(windows), max(1, round(tokens * len(windows) / sum(map(len, windows)))))
    return [windows[len(windows) * i // count] for i in range(count)]


def losses(model: PreTrainedModel, data: Mapping[str, list[Window]]) -> dict[str, float]:
    """Return the mean loss per token of each text, in float32."""
    return {name: score.loss for name, score in evaluate(model.float(), data).items()}


def merged(base: Path, vectors: Mapping[str, float], seed: int = 0) -> PreTrainedModel:
    """Return base + sum of coefficient * vector, rounded to bf16."""
    return DEMModel.from_pretrained(base, vectors=vectors, dtype="bfloat16", rounding_seed=seed)


def decode_all(vector: DistributionVector, base: Base) -> tuple[float, float, float]:
    """Decode every tensor, and return the relative error, the projection, and the seconds."""
    assert vector.config is not None
    start = time.perf_counter()
    for key, stored in vector.deltas(base).items():
        values = base.checkpoint.read(key)
        for _, delta in stored.decode(base.checkpoint.lazy(key), full_index(values.shape)):
            to_dense(delta, values)
    seconds = time.perf_counter() - start
    records = vector.config.tensors.values()
    squares = sum(record.norm**2 for record in records)
    error = sum((record.norm * record.relative_error) ** 2 for record in records)
    return (error / squares) ** 0.5, sum(record.norm**2 * record.projection for record in records) / squares, seconds


def extract_all(
    base: Path, finetuned: Path, codecs: Mapping[str, Mapping[str, Any]], folder: Path
) -> Iterator[tuple[str, Path, float]]:
    """Yield the label of each codec, the folder of its vector, and the seconds of its extraction."""
    for label, options in codecs.items():
        target = folder / label.replace(" ", "-")
        start = time.perf_counter()
        DistributionVector.extract(base, finetuned, **options).save_pretrained(target)
        yield label, target, time.perf_counter() - start


def alone(folder: Path, names: Sequence[str], codecs: Mapping[str, Mapping[str, Any]], tokens: int, seeds: int) -> None:
    """Print a table for each fine-tune."""
    base = folder / "base"
    opened = Base(resolve(VectorSource(str(base)), MODEL_FILES))
    total = sum(2 * info.nbytes // info.torch_dtype.itemsize for info in opened.checkpoint.values())
    for name in names:
        data = {name: read_windows(folder, name, "validation", tokens)}
        first = losses(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), data)[name]
        full = losses(AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32), data)[name]
        scored = sum(map(len, data[name]))
        print(f"\n{name}: loss {first:.4f} -> {full:.4f} on {scored} tokens\n", flush=True)
        print(
            "| codec | bytes | error | projection | kept | encode, s | decode, s |\n|---|---|---|---|---|---|---|",
            flush=True,
        )
        with tempfile.TemporaryDirectory() as scratch:
            for label, path, encode in extract_all(base, folder / name, codecs, Path(scratch)):
                vector = DistributionVector.from_pretrained(path)
                error, projection, decode = decode_all(vector, opened)
                kept = [
                    (first - losses(merged(base, {str(path): 1.0}, seed), data)[name]) / (first - full)
                    for seed in range(seeds)
                ]
                spread = f" ({min(kept):.1%} to {max(kept):.1%})" if seeds > 1 else ""
                cells = (
                    label,
                    f"{vector.nbytes / total:.2%}",
                    f"{error:.3f}",
                    f"{projection:.3f}",
                    f"{sum(kept) / seeds:.1%}{spread}",
                )
                print("| " + " | ".join((*cells, f"{encode:.1f}", f"{decode:.1f}")) + " |", flush=True)


def sums(
    folder: Path,
    names: Sequence[str],
    codecs: Mapping[str, Mapping[str, Any]],
    tokens: int,
    seeds: int,
    point: Sequence[float] | None,
) -> None:
    """Print what each codec keeps of each distribution in a sum, at coefficients searched with whole vectors."""
    base = folder / "base"
    data = {name: read_windows(folder, name, "validation", tokens) for name in names}
    first = losses(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), data)
    with tempfile.TemporaryDirectory() as scratch:
        paths: dict[str, list[Path]] = {}
        for number, name in enumerate(names):
            for label, path, _ in extract_all(base, folder / name, codecs, Path(scratch) / str(number)):
                paths.setdefault(label, []).append(path)
        reference = "dense bfloat16"
        if point is None:
            point = search_coefficients(base, list(map(str, paths[reference])), data, held_out=0).best.coefficients
        print(
            "\nbase" + "".join(f" + {value:.3f} {name}" for name, value in zip(names, point, strict=True)), flush=True
        )
        print(f"| codec | {' | '.join(names)} |\n|---|{'---|' * len(names)}", flush=True)
        full: dict[str, float] = {}
        for label, vectors in [(reference, paths[reference]), *paths.items()]:
            weighted = dict(zip(map(str, vectors), point, strict=True))
            runs = [losses(merged(base, weighted, seed), data) for seed in range(seeds)]
            mean = {name: sum(run[name] for run in runs) / seeds for name in names}
            if not full:
                full = mean
                continue
            kept = (f"{(first[name] - mean[name]) / (first[name] - full[name]):.1%}" for name in names)
            print(f"| {label} | {' | '.join(kept)} |", flush=True)


def adapters(folder: Path, names: Sequence[str], tokens: int, seeds: int) -> None:
    """Print size and quality of `auto` on checkpoints with merged adapters, compared with the adapters."""
    base = folder / "base"
    print("| fine-tune | bytes / adapter's | kept | chosen |\n|---|---|---|---|", flush=True)
    for name in names:
        adapter = DistributionVector.from_pretrained(folder / "lora" / Path(name).name)
        data = {name: read_windows(folder, name, "validation", tokens)}
        first, full = (
            losses(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32), data)[name]
            for path in (base, folder / name)
        )
        with tempfile.TemporaryDirectory() as scratch:
            vector = DistributionVector.extract(base, folder / name)
            vector.save_pretrained(scratch)
            kept = [
                (first - losses(merged(base, {scratch: 1.0}, seed), data)[name]) / (first - full)
                for seed in range(seeds)
            ]
            assert vector.config is not None
            print(
                f"| {name} | {vector.nbytes / adapter.nbytes:.2f} | {sum(kept) / seeds:.1%} | {vector.config.choice} |",
                flush=True,
            )


def main() -> None:
    """Run one of the three comparisons."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("alone", "sums", "adapters"))
    parser.add_argument("folder", type=Path, help="folder made by benchmarks/finetunes.py")
    parser.add_argument("names", nargs="+", help="fine-tunes in that folder")
    parser.add_argument("--codecs", nargs="+", choices=[*CODECS, *EXACT], help="codecs to measure (default: all)")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens of each text to evaluate (default: 4096)")
    parser.add_argument(
        "--coefficients", nargs="+", type=float, help="for sums: use these coefficients instead of a search"
    )
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds of the rounding (default: 1)")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    known = CODECS | EXACT
    chosen = {label: known[label] for label in arguments.codecs} if arguments.codecs else known
    if arguments.what == "alone":
        alone(folder, arguments.names, chosen, arguments.tokens, arguments.seeds)
    elif arguments.what == "sums":
        reference = {label: known[label] for label in ("dense bfloat16",)}
        sums(folder, arguments.names, reference | chosen, arguments.tokens, arguments.seeds, arguments.coefficients)
    else:
        adapters(folder, arguments.names, arguments.tokens, arguments.seeds)


if __name__ == "__main__":
    main()
