"""`dem-hub eval`: perplexities of texts, and scores of tasks, each under its name."""

import json
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import click

from dem_hub.cli.arguments import (
    DATA,
    MODEL,
    batch_size_option,
    columns_option,
    data_option,
    device_map_option,
    json_option,
    max_length_option,
    split_columns,
    split_pairs,
    verify_option,
)
from dem_hub.cli.command import PATH, Command, argument, command, option
from dem_hub.errors import ConfigError
from dem_hub.hub.foreign_text import printable

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from dem_hub.evaluation.likelihood import Likelihood
    from dem_hub.evaluation.tasks import TaskScore


_MERGE_FIRST = (
    "A vector is evaluated on its base: dem-hub merge BASE --vector ID=COEFFICIENT -o DIR, then dem-hub eval DIR."
)


class EvalCommand(Command):
    """A command whose `--tasks` takes several names: click's options take a fixed number of values."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse `--tasks a b` as `--tasks a --tasks b`."""
        repeated = []
        is_task = False
        for position, text in enumerate(args):
            if text.startswith("-"):
                is_task = text == "--tasks"
            elif is_task and args[position - 1] != "--tasks":
                repeated.append("--tasks")
            repeated.append(text)
        return super().parse_args(ctx, repeated)


@command(
    "eval",
    cls=EvalCommand,
    examples=[
        "dem-hub eval me/my-dem --data maths=maths.jsonl --data code=code.txt",
        "dem-hub eval me/my-dem --tasks arc_easy hellaswag --limit 200",
    ],
)
@argument("model", type=PATH, help="Hub id or folder of a model or a recipe.")
@data_option(
    help="Evaluation data: a text file, rows in a .jsonl, .json, .csv or .parquet file, or a data set's Hub id or "
    "folder with its split (openai/gsm8k:main:test). Can be repeated.",
)
@columns_option
@option(
    "--tasks",
    multiple=True,
    group=DATA,
    metavar="NAME...",
    help="Tasks, groups or patterns of lm-evaluation-harness.",
)
@option(
    "--include-path", type=PATH, group=DATA, metavar="FOLDER", help="Folder with additional lm-eval task files (YAML)."
)
@option("--limit", type=int, group=DATA, help="Evaluate only the first N items of each task.")
@option("--dtype", default="auto", group=MODEL, help="Dtype of the model; auto is its own.")
@device_map_option
@verify_option
@batch_size_option
@max_length_option
@json_option
def eval_command(
    *,
    model: str,
    data: Sequence[str],
    columns: Sequence[str],
    tasks: Sequence[str],
    include_path: str | None,
    limit: int | None,
    dtype: str,
    device_map: str | None,
    batch_size: int,
    max_length: int,
    as_json: bool,
) -> None:
    """Evaluate perplexity on texts and scores on lm-eval tasks."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    from dem_hub.evaluation.columns import select_columns
    from dem_hub.evaluation.likelihood import evaluate
    from dem_hub.evaluation.reader import Reader
    from dem_hub.evaluation.rows import check_files
    from dem_hub.evaluation.tasks import find_tasks, score_tasks

    if not (data or tasks):
        raise ConfigError("There is nothing to evaluate on; give --data NAME=FILE, --tasks NAME, or both.")
    if not tasks and (limit is not None or include_path is not None):
        raise ConfigError("--limit and --include-path are for --tasks, which is not given.")
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ConfigError(f"dtype is '{dtype}'; give auto, or a dtype of torch such as bfloat16.")
    datasets = select_columns(split_pairs(data, "--data", "maths=maths.jsonl"), split_columns(columns))
    check_files(datasets)
    found_tasks = find_tasks(tasks, include_path) if tasks else None
    if found_tasks is not None:
        _refuse_one_name_for_two(set(datasets) & set(found_tasks.names))

    # Token ids need no tokenizer, so it is loaded when the first text is read.
    tokenizer = cache(partial(_load_tokenizer, model))
    config = _config_of(model)
    windows = {}
    if datasets:
        # Before the weights: data that cannot be used are found first, and so is a model that has no likelihood.
        reader = Reader.of_model(config, tokenizer, max_length)
        windows = {name: reader.windows(rows) for name, rows in datasets.items()}
    auto_class: Any = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    loaded = auto_class.from_pretrained(model, dtype=dtype, device_map=device_map)
    scores: dict[str, TaskScore] = {}
    if found_tasks is not None:
        scores = score_tasks(loaded, tokenizer(), found_tasks, limit=limit, batch_size=batch_size)
    likelihoods = evaluate(loaded, windows, batch_size)
    print(json.dumps(_data(likelihoods, scores)) if as_json else printable(_text(likelihoods, scores), keep="\n"))


def _refuse_one_name_for_two(names: set[str]) -> None:
    if names:
        quoted = ", ".join(map(repr, sorted(names)))
        raise ConfigError(f"{quoted} is the name of data and of a task; give the data another name.")


def _config_of(name: str) -> "PretrainedConfig":
    from dem_hub.models.named_model import NamedModel

    named = NamedModel.find(name, {})
    if named.adapter_or_vector:
        raise ConfigError(f"'{name}' is {named.adapter_or_vector}, and no model without its base. {_MERGE_FIRST}")
    return named.config


def _load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name)
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"'{name}' is not a model or recipe with a tokenizer ({reason}). {_MERGE_FIRST}") from error


def _data(likelihoods: "Mapping[str, Likelihood]", scores: "Mapping[str, TaskScore]") -> dict[str, Any]:
    """Return everything as JSON data. The standard error of a metric such as `acc` follows as `acc_stderr`."""
    data: dict[str, Any] = {}
    for name, likelihood in likelihoods.items():
        data[name] = {"perplexity": likelihood.perplexity, "loss": likelihood.loss, "tokens": likelihood.tokens}
    for name, score in scores.items():
        errors = {f"{metric}_stderr": error for metric, error in score.errors.items()}
        data[name] = {**score.metrics, **errors, "items": score.items}
    return data


def _text(likelihoods: "Mapping[str, Likelihood]", scores: "Mapping[str, TaskScore]") -> str:
    """Return a table of the texts, and one of the tasks."""
    from dem_hub.cli.output import table

    tables = []
    if likelihoods:
        rows = []
        for name, likelihood in likelihoods.items():
            rows.append((name, f"{likelihood.perplexity:.4f}", f"{likelihood.loss:.5f}", str(likelihood.tokens)))
        tables.append(table(("data", "perplexity", "loss", "tokens"), rows))
    if scores:
        tables.append(table(("task", "metric", "score", "standard error", "items"), _task_rows(scores)))
    return "\n\n".join(tables)


def _task_rows(scores: "Mapping[str, TaskScore]") -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, score in scores.items():
        for metric, value in score.metrics.items():
            error = f"{score.errors[metric]:.4f}" if metric in score.errors else ""
            rows.append((name, metric, f"{value:.4f}", error, str(score.items)))
    return rows
