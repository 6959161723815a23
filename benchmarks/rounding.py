"""The share of a merge that rounding to bf16 keeps: validation loss of real fine-tunes, by dem_hub and by other
tools.

A base in bf16 and its N fine-tunes are merged with the coefficients 0.1 each, 1/N each and 1 each:

* in float32, the reference;
* by dem_hub into bf16, rounded to nearest, and stochastically (the default; mean and range of several seeds);
* where the fine-tunes are models, by mergekit's `task_arithmetic`, with `dtype: bfloat16`, and with `dtype: float32`
  and `out_dtype: bfloat16`. mergekit needs an environment of its own: `--mergekit-python`;
* where they are LoRA adapters, by PEFT's `add_weighted_adapter(combination_type="cat")` and `merge_and_unload` on a
  bf16 model.

The loss is the mean over the data files of the mean loss per token. Every model is evaluated in float32 with its
merged weights unchanged, so that only the rounding of weights has an effect. "Gain kept" is the share of the float32
merge's improvement over the base. The script fails if stochastic rounding keeps less than 95 % of it at 0.1 each.

    python -m venv mergekit && mergekit/bin/pip install mergekit==0.1.5
    python benchmarks/rounding.py --base base --finetuned gsm=gsm-model --finetuned code=code-model
        --data gsm=gsm.valid.jsonl --data code=code.valid.jsonl --mergekit-python mergekit/bin/python
"""

import argparse
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from dem_hub import DEMModel, DistributionVector
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.evaluation.likelihood import evaluate
from dem_hub.evaluation.reader import Reader
from dem_hub.evaluation.windows import Window

WINDOW = 256  # tokens
SEEDS = 3
BAR = 0.95

Merge = Callable[[], PreTrainedModel]
Merges = Iterator[tuple[str, list[Merge]]]


def read_windows(tokenizer: Path, file: Path, tokens: int) -> list[Window]:
    """Return windows with about so many tokens in all, evenly spread over a file."""
    windows = Reader(lambda: AutoTokenizer.from_pretrained(tokenizer), WINDOW).windows(file)
    count = min(len(windows), max(1, round(tokens * len(windows) / sum(map(len, windows)))))
    return [windows[len(windows) * i // count] for i in range(count)]


def ours(base: Path, vectors: list[Path], coefficient: float) -> Merges:
    """Yield a label and one or more merges for each kind of merge by dem_hub."""

    def merge(dtype: str, rounding: str, seed: int = 0) -> Merge:
        coefficients = {str(path): coefficient for path in vectors}
        options = {"dtype": dtype, "rounding": rounding, "rounding_seed": seed}
        return lambda: DEMModel.from_pretrained(str(base), vectors=coefficients, **options)

    yield "float32", [merge("float32", "nearest")]
    yield "dem_hub, bf16, nearest", [merge("bfloat16", "nearest")]
    yield "dem_hub, bf16, stochastic", [merge("bfloat16", "stochastic", seed) for seed in range(SEEDS)]


def mergekit(python: str, base: Path, models: list[Path], coefficient: float) -> Merges:
    """Yield the merges of full models by mergekit."""

    def merge(**dtypes: str) -> PreTrainedModel:
        recipe = {
            "merge_method": "task_arithmetic",
            "base_model": str(base),
            "models": [{"model": str(path), "parameters": {"weight": coefficient}} for path in models],
            "parameters": {"normalize": False},
            **dtypes,
        }
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "recipe.yml").write_text(json.dumps(recipe))  # JSON is YAML
            command = [python, "-m", "mergekit.scripts.run_yaml", f"{folder}/recipe.yml", f"{folder}/merged"]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
            if done.returncode != 0:
                raise SystemExit(done.stderr)
            assert all(info.dtype == "BF16" for info in Checkpoint(f"{folder}/merged").values())
            return AutoModelForCausalLM.from_pretrained(f"{folder}/merged", dtype=torch.float32)

    yield "mergekit, bf16", [lambda: merge(dtype="bfloat16")]
    yield "mergekit, float32, written as bf16", [lambda: merge(dtype="float32", out_dtype="bfloat16")]


def peft(base: Path, adapters: list[Path], coefficient: float) -> Merges:
    """Yield the merge of LoRA adapters by PEFT."""

    def merge() -> PreTrainedModel:
        from peft import PeftModel

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
        names = [f"adapter_{number}" for number in range(len(adapters))]
        model = PeftModel.from_pretrained(model, adapters[0], adapter_name=names[0])
        for name, path in zip(names[1:], adapters[1:], strict=True):
            model.load_adapter(path, adapter_name=name)
        model.add_weighted_adapter(names, [coefficient] * len(names), "merged", combination_type="cat")
        model.set_adapter("merged")
        return model.merge_and_unload()

    yield "PEFT, cat, merged into bf16", [merge]


def parse_arguments() -> argparse.Namespace:
    """Read the command line. Folders become absolute paths, by name."""

    def named(text: str) -> tuple[str, Path]:
        name, _, path = text.partition("=")
        return name, Path(path).resolve()

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--base", type=lambda text: Path(text).resolve(), required=True, help="folder of the base, in bf16"
    )
    parser.add_argument("--finetuned", action="append", type=named, required=True, metavar="NAME=FOLDER", help="repeat")
    parser.add_argument("--data", action="append", type=named, required=True, metavar="NAME=FILE.jsonl", help="repeat")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of each file to evaluate (default: 2048)")
    parser.add_argument("--mergekit-python", help="Python of an environment that has mergekit")
    return parser.parse_args()


def print_rows(
    coefficient: float, merges: Merges, loss: Callable[[PreTrainedModel], float], base_loss: float
) -> dict[str, float]:
    """Print a row for each kind of merge, float32 first. Return the share of the float32 gain that each keeps."""
    kept: dict[str, float] = {}
    full = base_loss
    for label, runs in merges:
        losses = [loss(run()) for run in runs]
        mean = sum(losses) / len(losses)
        full = mean if label == "float32" else full
        shares = [(base_loss - value) / (base_loss - full) for value in losses]
        kept[label] = sum(shares) / len(shares)
        text = f"{kept[label]:.1%}"
        if len(shares) > 1:
            text += f" ({min(shares):.1%} to {max(shares):.1%})"
        if full >= base_loss:
            text = "no gain to keep"
        print(f"| {coefficient:.3g} each | {label} | {mean:.4f} | {text} |", flush=True)
    return kept


def main() -> None:
    """Merge, evaluate, and print a Markdown table."""
    arguments = parse_arguments()
    base, finetuned = arguments.base, dict(arguments.finetuned)
    windows = {name: read_windows(base, file, arguments.tokens) for name, file in arguments.data}
    models = list(finetuned.values())

    def loss(model: PreTrainedModel) -> float:
        scores = evaluate(model.float(), windows)
        return sum(score.loss for score in scores.values()) / len(scores)

    adapters = all((path / "adapter_config.json").is_file() for path in models)
    base_loss = loss(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32))
    kind = "LoRA adapters" if adapters else "full fine-tunes"
    tokens = sum(len(window) for part in windows.values() for window in part)
    print(f"{len(models)} {kind}, {len(windows)} data files, {tokens} tokens; loss of the base {base_loss:.4f}.\n")
    print("| coefficients | merge | loss | gain kept |\n|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        vectors = models
        if not adapters:
            vectors = [Path(folder, name) for name in finetuned]
            for path, target in zip(models, vectors, strict=True):
                DistributionVector.extract(base, path, codec="dense", dtype="float32").save_pretrained(target)
        kept = {}
        for coefficient in (0.1, 1 / len(models), 1.0):
            others: Merges = iter(())
            if adapters:
                others = peft(base, models, coefficient)
            elif arguments.mergekit_python:
                others = mergekit(arguments.mergekit_python, base, models, coefficient)
            kept[coefficient] = print_rows(
                coefficient, chain(ours(base, vectors, coefficient), others), loss, base_loss
            )
    if kept[0.1]["dem_hub, bf16, stochastic"] < BAR:
        raise SystemExit(f"stochastic rounding at 0.1 each keeps less than {BAR:.0%}")


if __name__ == "__main__":
    main()
