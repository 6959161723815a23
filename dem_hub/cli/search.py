"""`dem-hub search`: its options, and what it prints. Apart from `cli`, since a search has more options than all other commands."""

import argparse
import json
from pathlib import Path
from typing import Any

from dem_hub.cli.arguments import number, split_pairs
from dem_hub.errors import ConfigError
from dem_hub.files.folders import RECIPE, check_target

_PASSED_ON = (
    "granularity", "max_sum", "max_forward", "held_out", "resume_from", "cache", "seed", "dtype", "batch_size", "max_length", "packing",
)  # fmt: skip


def add_search(commands: Any) -> None:
    """Add the command and its options to the parser's subcommands."""
    parser = commands.add_parser(
        "search", help="find the coefficients with the lowest validation loss, and write the recipe"
    )
    parser.add_argument("base", help="Hub id or folder of the base")
    parser.add_argument(
        "--vector", action="append", required=True, metavar="ID[@REVISION][//SUBFOLDER]", help="a vector; repeat"
    )
    parser.add_argument(
        "--data",
        action="append",
        required=True,
        metavar="NAME=FILE",
        help="validation data: a text, or JSONL rows; repeat",
    )
    parser.add_argument("-o", "--output", required=True, help="folder for the recipe and all that was measured")
    parser.add_argument(
        "--method", default="auto", help="gauss_newton, gradient, quadratic, optuna, grid, uniform or auto (default)"
    )
    parser.add_argument("--sampler", help="optuna: gp (default), tpe, cmaes, nsgaii or random")
    parser.add_argument(
        "--storage", help="optuna: a journal file or a database URL, for several processes that share one study"
    )
    parser.add_argument(
        "--objective", default="mean", choices=("mean", "worst", "improvement"), help="of the distributions' losses"
    )
    parser.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="NAME=NUMBER",
        help="of a distribution in the objective; repeat",
    )
    parser.add_argument(
        "--bounds",
        nargs=2,
        type=float,
        default=(0.0, 1.5),
        metavar=("LOW", "HIGH"),
        help="of a coefficient (default 0 1.5)",
    )
    parser.add_argument("--max-sum", type=float, help="the most that the coefficients may sum to")
    parser.add_argument(
        "--granularity",
        default="model",
        choices=("model", "block", "group"),
        help="coefficients of whole vectors (default), or also of runs of layers, or of attention, MLPs, embeddings; kept if better held out",
    )
    parser.add_argument(
        "--max-forward", type=float, help="forward passes over the data at most (default: what the method needs)"
    )
    parser.add_argument(
        "--held-out", type=float, default=0.25, help="share of documents on which the answer is accepted (default 0.25)"
    )
    parser.add_argument("--resume-from", help="folder of an earlier search or recipe to go on from")
    parser.add_argument(
        "--with-logits", action="store_true", help="keep the logits (gigabytes), so that a new vector costs one pass"
    )
    parser.add_argument("--cache", help="folder for everything measured; a search that was killed goes on from there")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of samplers (default 0)")
    parser.add_argument("--dtype", default="float32", help="of the model searched on (default float32)")
    parser.add_argument("--device-map", help="as in transformers, for instance auto")
    parser.add_argument("--batch-size", type=int, default=8, help="windows in a forward pass (default 8)")
    parser.add_argument("--max-length", type=int, default=1024, help="tokens in a window (default 1024)")
    parser.add_argument("--packing", action="store_true", help="let documents share windows")
    parser.add_argument("--plot", help="a picture of the search, PNG or SVG")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_search)


def _search(options: argparse.Namespace) -> None:
    from dem_hub.cli.report import table
    from dem_hub.cli.search_report import cost_text, result_data, result_tables
    from dem_hub.plotting import require_matplotlib
    from dem_hub.search import Optuna, search_coefficients

    if options.plot:
        require_matplotlib()
    check_target(Path(options.output), RECIPE)  # before hours of work
    method = options.method
    if options.sampler or options.storage:
        if method not in ("auto", "optuna"):
            raise ConfigError(f"--sampler and --storage are for --method optuna, and the method is {method}.")
        method = Optuna(options.sampler or "gp", storage=options.storage)
    result = search_coefficients(
        options.base,
        options.vector,
        {name: Path(file) for name, file in split_pairs(options.data, "--data").items()},
        method=method,
        objective=options.objective,
        weights={
            name: number(value, f"weight of '{name}'")
            for name, value in split_pairs(options.weight, "--weight").items()
        },
        bounds=tuple(options.bounds),
        device_map=options.device_map,
        **{name: getattr(options, name) for name in _PASSED_ON},
    )
    result.save_pretrained(options.output, with_logits=options.with_logits)
    if options.plot:
        result.plot(options.plot)
    if options.json:
        print(json.dumps(result_data(result)))
    else:
        texts = [*(table(head, rows) for head, rows in result_tables(result)), cost_text(result)]
        print("\n\n".join(texts) + f"\n{options.output}: the recipe and all that was measured")
