"""`dem-hub`: the library from a shell. It parses, calls, and prints; data goes to stdout, progress and errors to stderr.

A user's mistake is one readable message and exit status 2, never a traceback.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub._version import __version__
from dem_hub.errors import ConfigError, DemHubError

if TYPE_CHECKING:
    from dem_hub.config import DEMConfig, VectorConfig
    from dem_hub.vector import DistributionVector

_LAYER = re.compile(r"(?P<layer>.*?\.\d+)\.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    options = _parser().parse_args(arguments)
    from huggingface_hub.errors import HfHubHTTPError

    try:
        options.run(options)
    except (DemHubError, HfHubHTTPError, OSError) as error:
        notes = "".join(f" {note}" for note in getattr(error, "__notes__", ()))
        print(f"dem-hub {options.command}: {str(error).strip()}{notes}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dem-hub", description="Distribution-edited models: base + sum of coefficient * vector.")
    parser.add_argument("--version", action="version", version=f"dem-hub {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    extract = commands.add_parser("extract", help="take the vector FINETUNED - BASE")
    extract.add_argument("base", help="Hub id or folder of the base")
    extract.add_argument("finetuned", help="Hub id or folder of the fine-tune")
    extract.add_argument("-o", "--output", required=True, help="folder for the vector")
    extract.add_argument("--codec", default="lowrank", help="lowrank (default) or dense")
    extract.add_argument("--rank", type=int, help="lowrank: singular directions to keep (default 32)")
    extract.add_argument("--energy", type=float, help="lowrank: or the share of the squared norm to keep, 0 to 1")
    extract.add_argument("--dtype", help="dense: float32 or bfloat16; lowrank: the same, of the factors")
    extract.set_defaults(run=_extract)

    info = commands.add_parser("info", help="show what vectors or recipes are")
    info.add_argument("paths", nargs="+", metavar="PATH", help="Hub id or folder of a vector, an adapter or a recipe")
    info.add_argument("--base", help="the base, for cosines between several vectors, where they do not name it")
    info.add_argument("--json", action="store_true", help="print JSON")
    info.set_defaults(run=_info)

    merge = commands.add_parser("merge", help="write the merged model as an ordinary transformers folder")
    merge.add_argument("model", help="a base (with --vector) or a recipe")
    merge.add_argument("--vector", action="append", default=[], metavar="ID[@REVISION][//SUBFOLDER]=COEFFICIENT", help="a vector; repeat")
    merge.add_argument("-o", "--output", required=True, help="folder for the model")
    merge.add_argument("--dtype", help="float32, float16 or bfloat16 (default: the recipe's, or the base's own)")
    merge.add_argument("--rounding", choices=("stochastic", "nearest"), help="default: stochastic, unbiased")
    merge.add_argument("--rounding-seed", type=int, help="of the stochastic rounding (default 0)")
    merge.add_argument("--max-shard-size", default="5GB", help="where to begin another file (default 5GB)")
    merge.add_argument("--allow-base-mismatch", action="store_true", help="put vectors on a base they were not made from")
    merge.set_defaults(run=_merge)

    evaluate = commands.add_parser("eval", help="perplexity of a model or recipe on named texts")
    evaluate.add_argument("model", help="Hub id or folder of a model or a recipe")
    evaluate.add_argument("--data", action="append", required=True, metavar="NAME=FILE", help="a text, or JSONL with a text a line; repeat")
    evaluate.add_argument("--dtype", default="auto", help="of the model (default: its own)")
    evaluate.add_argument("--device-map", help="as in transformers, for instance auto")
    evaluate.add_argument("--batch-size", type=int, default=8, help="windows in a forward pass; does not change the result (default 8)")
    evaluate.add_argument("--max-length", type=int, default=1024, help="tokens in a window (default 1024)")
    evaluate.add_argument("--json", action="store_true", help="print JSON")
    evaluate.set_defaults(run=_eval)

    demo = commands.add_parser("demo", help="the whole method on a real model, in minutes")
    demo.add_argument("-o", "--output", default="dem-hub-demo", help="folder for everything it makes (default dem-hub-demo)")
    demo.set_defaults(run=_demo)
    return parser


def _extract(options: argparse.Namespace) -> None:
    from dem_hub.vector import DistributionVector

    chosen = {name: getattr(options, name) for name in ("rank", "energy", "dtype") if getattr(options, name) is not None}
    vector = DistributionVector.extract(options.base, options.finetuned, codec=options.codec, **chosen)
    vector.save_pretrained(options.output)
    assert vector.config is not None
    print(f"{options.output}: {_summary(vector.config, vector.nbytes)}")


def _merge(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from dem_hub.export import export
    from dem_hub.recipe import open_base_and_vectors, open_recipe
    from dem_hub.records import VectorSource

    source = VectorSource.parse(options.model)
    vectors = {VectorSource.parse(name): _number(value, name) for name, value in (_split(text) for text in options.vector)}
    opened = open_base_and_vectors(source, vectors) if vectors else open_recipe(source, check_base=not options.allow_base_mismatch)
    changes = {name: getattr(options, name) for name in ("rounding", "rounding_seed") if getattr(options, name) is not None}
    opened = replace(opened, recipe=replace(opened.recipe, **changes))
    export(
        opened,
        Path(options.output),
        dtype=options.dtype,
        max_shard_size=options.max_shard_size,
        allow_base_mismatch=options.allow_base_mismatch,
    )
    print(options.output)


def _eval(options: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dem_hub.search.objective import as_windows, evaluate

    if options.dtype != "auto" and not isinstance(getattr(torch, options.dtype, None), torch.dtype):
        raise ConfigError(f"dtype is '{options.dtype}'; give auto, or a dtype of torch such as bfloat16.")

    def load_tokenizer() -> Any:
        try:
            return AutoTokenizer.from_pretrained(options.model)
        except ValueError as error:
            raise ConfigError(f"'{options.model}' is not a model or recipe with a tokenizer ({str(error).splitlines()[0]}).") from error

    files = dict(_split(text) for text in options.data)
    data = {name: as_windows(load_tokenizer, Path(file), options.max_length) for name, file in files.items()}
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype, device_map=options.device_map)
    scores = evaluate(model, data, options.batch_size)
    if options.json:
        print(json.dumps({name: {"perplexity": s.perplexity, "loss": s.loss, "tokens": s.tokens} for name, s in scores.items()}))
        return
    rows = [(name, f"{score.perplexity:.4f}", f"{score.loss:.5f}", str(score.tokens)) for name, score in scores.items()]
    _print_table(("data", "perplexity", "loss", "tokens"), rows)


def _demo(options: argparse.Namespace) -> None:
    import logging

    from dem_hub.demo.run import run_demo

    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("dem_hub").setLevel(logging.INFO)
    print(run_demo(Path(options.output)))


def _info(options: argparse.Namespace) -> None:
    from dem_hub.config import DEMConfig, is_recipe
    from dem_hub.hub import resolve
    from dem_hub.records import VectorSource
    from dem_hub.vector import DistributionVector

    vectors, report = [], []
    for path in options.paths:
        source = VectorSource.parse(path)
        if is_recipe(resolve(source, ("config.json",)).folder):
            recipe = DEMConfig.from_pretrained(source)
            report.append({"path": path, "kind": "recipe", **recipe.to_dict()})
            if not options.json:
                _print_recipe(path, recipe)
        else:
            vector = DistributionVector.describe(source)
            vectors.append(vector)
            report.append(_vector_report(path, vector))
            if not options.json:
                _print_vector(path, vector)
    comparison = _compare(vectors, options.base) if len(vectors) > 1 else None
    if options.json:
        print(json.dumps({"items": report, "comparison": asdict(comparison) if comparison else None}, indent=2))
    elif comparison is not None:
        print("\ncosines")
        rows = [(name, *(f"{value:.4f}" for value in row)) for name, row in zip(comparison.names, comparison.cosines, strict=True)]
        _print_table(
            ("", *(f"[{number}]" for number in range(1, len(rows) + 1))), [(f"[{n}] {row[0]}", *row[1:]) for n, row in enumerate(rows, 1)]
        )


def _compare(vectors: "list[DistributionVector]", base: str | None) -> Any:
    from dem_hub.base import Base
    from dem_hub.comparison import compare
    from dem_hub.hub import MODEL_FILES, resolve
    from dem_hub.records import VectorSource

    source = VectorSource.parse(base) if base else vectors[0].base.source
    return compare(vectors, Base(resolve(source, MODEL_FILES)))


def _vector_report(path: str, vector: "DistributionVector") -> dict[str, Any]:
    report: dict[str, Any] = {"path": path, "kind": "vector", "bytes": vector.nbytes, "base": asdict(vector.base)}
    if vector.config is not None:
        report |= {"codec": vector.config.codec, "codec_options": dict(vector.config.codec_options)}
        report["tensors"] = {name: asdict(record) for name, record in vector.config.tensors.items()}
    else:
        report["codec"] = "lora"
    return report


def _summary(config: "VectorConfig", nbytes: int) -> str:
    norm = math.sqrt(sum(record.norm**2 for record in config.tensors.values()))
    error = math.sqrt(sum((record.norm * record.relative_error) ** 2 for record in config.tensors.values())) / norm if norm else 0.0
    options = " ".join(f"{name}={value}" for name, value in config.codec_options.items())
    return f"{config.codec} {options}, {len(config.tensors)} tensors changed, {_size(nbytes)}, norm {norm:.4g}, relative error {error:.3g}"


def _print_vector(path: str, vector: "DistributionVector") -> None:
    print(f"{path}")
    print(f"  base   {vector.base}")
    if vector.config is None:
        print(f"  codec  lora (a PEFT adapter, read as it is), {_size(vector.nbytes)}")
        return
    print(f"  vector {_summary(vector.config, vector.nbytes)}")
    layers: dict[str, list[Any]] = {}
    for name, record in vector.config.tensors.items():
        match = _LAYER.match(name)
        layers.setdefault(match["layer"] if match else name, []).append(record)
    rows = []
    for layer, records in layers.items():
        norm = math.sqrt(sum(record.norm**2 for record in records))
        error = math.sqrt(sum((record.norm * record.relative_error) ** 2 for record in records)) / norm if norm else 0.0
        lowest = min(record.projection for record in records)
        rows.append((layer, "+".join(sorted({record.codec for record in records})), f"{norm:.4g}", f"{error:.3g}", f"{lowest:.3f}"))
    _print_table(("layer", "codec", "norm", "relative error", "projection"), rows)


def _print_recipe(path: str, recipe: "DEMConfig") -> None:
    print(f"{path}\n  base     {recipe.base}")
    for name, coefficient in recipe.coefficients.items():
        print(f"  vector   {coefficient:+.4f} * {name}")
    print(f"  dtype    {recipe.dtype or 'the base' + chr(39) + 's own'}, {recipe.rounding} rounding, seed {recipe.rounding_seed}")
    if recipe.search:
        print(f"  search   {json.dumps(recipe.search, sort_keys=True)}")


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    for row in (head, *rows):
        print(
            "  ".join(cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        )


def _split(text: str) -> tuple[str, str]:
    name, equals, value = text.rpartition("=")
    if not equals or not name or not value:
        raise ConfigError(f"'{text}' is not NAME=VALUE.")
    return name, value


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"The coefficient of '{name}' is '{text}', which is not a number.") from error


def _size(nbytes: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= scale:
            return f"{nbytes / scale:.1f} {unit}"
    return f"{nbytes} B"


if __name__ == "__main__":
    sys.exit(main())
