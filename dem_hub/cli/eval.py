"""`dem-hub eval`: its options, and what it prints: perplexities of texts, and scores of tasks, each thing by its name."""

import argparse
import json
from collections.abc import Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.cli.arguments import split_pairs
from dem_hub.errors import ConfigError
from dem_hub.files.folders import VECTOR, kind_of

if TYPE_CHECKING:
    from dem_hub.evaluation.likelihood import Likelihood
    from dem_hub.evaluation.tasks import TaskScore


_MERGE_FIRST = (
    "A vector is evaluated on its base: dem-hub merge BASE --vector ID=COEFFICIENT -o DIR, then dem-hub eval DIR."
)


def add_eval(commands: Any) -> None:
    """Add the command and its options to the parser's subcommands."""
    parser = commands.add_parser("eval", help="perplexity of a model or recipe on named texts, and its scores on tasks")
    parser.add_argument("model", help="Hub id or folder of a model or a recipe")
    parser.add_argument(
        "--data", action="append", default=[], metavar="NAME=FILE", help="a text, or JSONL with a text a line; repeat"
    )
    parser.add_argument(
        "--tasks", nargs="+", default=[], metavar="NAME", help="tasks, groups or patterns of lm-evaluation-harness"
    )
    parser.add_argument("--include-path", metavar="FOLDER", help="of more tasks, as the harness's YAML files")
    parser.add_argument("--limit", type=int, help="items of a task at the most, from the first")
    parser.add_argument("--dtype", default="auto", help="of the model (default: its own)")
    parser.add_argument("--device-map", help="as in transformers, for instance auto")
    parser.add_argument(
        "--batch-size", type=int, default=8, help="windows in a forward pass; does not change the result (default 8)"
    )
    parser.add_argument("--max-length", type=int, default=1024, help="tokens in a window of --data (default 1024)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_eval)


def _eval(options: argparse.Namespace) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from dem_hub.evaluation.likelihood import evaluate
    from dem_hub.evaluation.reader import Reader
    from dem_hub.evaluation.rows import check_files
    from dem_hub.evaluation.tasks import find_tasks, score_tasks

    if not (options.data or options.tasks):
        raise ConfigError("There is nothing to evaluate on; give --data NAME=FILE, --tasks NAME, or both.")
    if options.dtype != "auto" and not isinstance(getattr(torch, options.dtype, None), torch.dtype):
        raise ConfigError(f"dtype is '{options.dtype}'; give auto, or a dtype of torch such as bfloat16.")
    if kind_of(Path(options.model)) == VECTOR:
        raise ConfigError(f"'{options.model}' is a vector, and no model without its base. {_MERGE_FIRST}")
    files = split_pairs(options.data, "--data")
    check_files(files)
    tasks = find_tasks(options.tasks, options.include_path) if options.tasks else None
    both = sorted(set(files) & set(tasks.names)) if tasks else []
    if both:
        raise ConfigError(
            f"{', '.join(map(repr, both))} is the name of data and of a task; give the data another name."
        )

    tokenizer = cache(partial(_tokenizer, options.model))
    reader = Reader(tokenizer, options.max_length)
    data = {name: reader.windows(Path(file)) for name, file in files.items()}
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=options.dtype, device_map=options.device_map)
    scores = score_tasks(model, tokenizer(), tasks, limit=options.limit, batch_size=options.batch_size) if tasks else {}
    texts = evaluate(model, data, options.batch_size)
    print(json.dumps(_data(texts, scores)) if options.json else _text(texts, scores))


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except ValueError as error:
        raise ConfigError(
            f"'{name}' is not a model or recipe with a tokenizer ({str(error).splitlines()[0]}). {_MERGE_FIRST}"
        ) from error


def _data(texts: "Mapping[str, Likelihood]", scores: "Mapping[str, TaskScore]") -> dict[str, Any]:
    """Everything as JSON data; of a task, `acc` and beside it `acc_stderr`."""
    found: dict[str, Any] = {
        name: {"perplexity": s.perplexity, "loss": s.loss, "tokens": s.tokens} for name, s in texts.items()
    }
    for name, score in scores.items():
        errors = {f"{metric}_stderr": value for metric, value in score.errors.items()}
        found[name] = {**score.metrics, **errors, "items": score.items}
    return found


def _text(texts: "Mapping[str, Likelihood]", scores: "Mapping[str, TaskScore]") -> str:
    """A table of each kind."""
    from dem_hub.cli.report import table

    tables = []
    if texts:
        losses = [
            (name, f"{score.perplexity:.4f}", f"{score.loss:.5f}", str(score.tokens)) for name, score in texts.items()
        ]
        tables.append(table(("data", "perplexity", "loss", "tokens"), losses))
    if scores:
        rows = [
            (
                name,
                metric,
                f"{value:.4f}",
                f"{score.errors[metric]:.4f}" if metric in score.errors else "",
                str(score.items),
            )
            for name, score in scores.items()
            for metric, value in score.metrics.items()
        ]
        tables.append(table(("task", "metric", "score", "standard error", "items"), rows))
    return "\n\n".join(tables)
