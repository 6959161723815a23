"""`dem-hub search`: the options of `search_coefficients`, and its result as tables or as JSON.

An option that the function has under the same name is passed on as it is; the function checks it.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, get_args

import click

from dem_hub.cli.arguments import (
    DATA,
    METHOD_GROUP,
    MODEL,
    OUTPUT,
    batch_size_option,
    columns_option,
    data_option,
    device_map_option,
    json_option,
    max_length_option,
    number,
    overwrite_option,
    split_columns,
    split_pairs,
    verify_option,
)
from dem_hub.cli.command import PATH, argument, command, option
from dem_hub.defaults import (
    BOUNDS,
    GRANULARITY,
    HELD_OUT,
    METHOD,
    OBJECTIVE,
    SEARCH_DTYPE,
    SEED,
    Granularity,
    ObjectiveKind,
)
from dem_hub.errors import ConfigError
from dem_hub.hub.foreign_text import printable

if TYPE_CHECKING:
    from dem_hub.search import SearchResult
    from dem_hub.search.cross_loss import Cell, CrossLoss
    from dem_hub.search.held_out import Acceptance

OBJECTIVE_GROUP = "Objective"

_Rows = list[tuple[str, ...]]
_Table = tuple[tuple[str, ...], _Rows]


@command(
    "search",
    examples=[
        "dem-hub search org/base --vector me/maths-vector --vector me/code-vector \\\n"
        "      --data maths=maths.jsonl --data code=code.jsonl -o my-dem",
        "dem-hub search org/base --vector me/maths-vector --data maths=maths.jsonl -o my-dem --cache measured",
    ],
)
@argument("base", type=PATH, help="Hub id or folder of the base.")
@option(
    "--vector",
    "vectors",
    type=PATH,
    multiple=True,
    required=True,
    group=DATA,
    metavar="ID[@REVISION][//SUBFOLDER]",
    help="Vector or LoRA adapter. Can be repeated.",
)
@data_option(
    required=True,
    help="Validation data of a distribution: a text file, rows in a .jsonl, .json, .csv or .parquet file, or a data "
    "set's Hub id or folder with its split (openai/gsm8k:main:test). Can be repeated.",
)
@columns_option
@option(
    "--held-out",
    type=float,
    default=HELD_OUT,
    group=DATA,
    metavar="FRACTION",
    help="Fraction of documents held out to accept the result.",
)
@option("--packing", is_flag=True, group=DATA, help="Put several documents into one window.")
@max_length_option
@option(
    "--objective",
    type=click.Choice(get_args(ObjectiveKind)),
    default=OBJECTIVE,
    group=OBJECTIVE_GROUP,
    help="How the losses of the distributions are combined.",
)
@option(
    "--weight",
    "weights",
    multiple=True,
    group=OBJECTIVE_GROUP,
    metavar="NAME=NUMBER",
    help="Weight of a distribution in the objective. Can be repeated.",
)
@option(
    "--bounds",
    nargs=2,
    type=float,
    default=BOUNDS,
    group=OBJECTIVE_GROUP,
    metavar="LOW HIGH",
    help="Lower and upper bound of every coefficient.",
)
@option("--max-sum", type=float, group=OBJECTIVE_GROUP, help="Largest allowed sum of the coefficients.")
@option(
    "--granularity",
    type=click.Choice(get_args(Granularity)),
    default=GRANULARITY,
    group=OBJECTIVE_GROUP,
    help="One coefficient per vector (model), or also per block of layers (block) or per kind of tensor (group). "
    "Finer coefficients are kept only if they are better on held-out data.",
)
@option(
    "--method",
    default=METHOD,
    group=METHOD_GROUP,
    metavar="NAME",
    help="gauss_newton, gradient, quadratic, optuna, grid, uniform, or auto, which chooses one.",
)
@option(
    "--sampler",
    group=METHOD_GROUP,
    metavar="NAME",
    help="For optuna: gp, tpe, cmaes, nsgaii or random. Default: gp.",
)
@option(
    "--storage",
    group=METHOD_GROUP,
    metavar="FILE|URL",
    help="For optuna: journal file or database URL, for several processes that share one study.",
)
@option(
    "--max-forward",
    type=float,
    group=METHOD_GROUP,
    help="Maximum number of forward passes over the data. Default: what the method needs.",
)
@option(
    "--resume-from",
    type=PATH,
    group=METHOD_GROUP,
    metavar="FOLDER",
    help="Earlier search or recipe to start from.",
)
@option(
    "--cache",
    type=PATH,
    group=METHOD_GROUP,
    metavar="FOLDER",
    help="Cache directory for measurements. An interrupted search resumes from it.",
)
@option("--seed", type=int, default=SEED, group=METHOD_GROUP, help="Seed of the held-out split and of samplers.")
@option("--dtype", default=SEARCH_DTYPE, group=MODEL, help="Dtype of the model during the search.")
@device_map_option
@verify_option
@batch_size_option
@option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    group=OUTPUT,
    metavar="FOLDER",
    help="Folder for the recipe and all measurements.",
)
@overwrite_option
@option(
    "--with-logits",
    is_flag=True,
    group=OUTPUT,
    help="Also save the logits (gigabytes); adding a vector later then costs one forward pass.",
)
@option("--plot", type=PATH, group=OUTPUT, metavar="FILE", help="Plot the search into this file (PNG or SVG).")
@json_option
def search(
    *,
    base: str,
    vectors: Sequence[str],
    data: Sequence[str],
    columns: Sequence[str],
    weights: Sequence[str],
    method: str,
    sampler: str | None,
    storage: str | None,
    output: str,
    overwrite: bool,
    with_logits: bool,
    plot: str | None,
    as_json: bool,
    **search_options: Any,
) -> None:
    """Search for the coefficients with the lowest validation loss and save a recipe."""
    from dem_hub.files.folders import RECIPE, check_output, check_output_file
    from dem_hub.plotting import require_matplotlib
    from dem_hub.search import Optuna, search_coefficients

    if plot:
        require_matplotlib()
    # Before hours of work.
    check_output(Path(output), RECIPE, overwrite=overwrite)
    if plot:
        check_output_file(Path(plot), overwrite=overwrite)
    if (sampler or storage) and method not in (METHOD, Optuna.name):
        raise ConfigError(f"--sampler and --storage are for --method optuna, and the method is {method}.")
    datasets = split_pairs(data, "--data")
    weight_of = {}
    for name, text in split_pairs(weights, "--weight").items():
        weight_of[name] = number(text, f"weight of '{name}'")
    result = search_coefficients(
        base,
        vectors,
        datasets,
        columns=split_columns(columns),
        method=Optuna(sampler or "gp", storage=storage) if sampler or storage else method,
        weights=weight_of,
        **search_options,
    )
    result.save_pretrained(output, with_logits=with_logits, exist_ok=overwrite)
    if plot:
        result.plot(plot)
    if as_json:
        print(json.dumps(_result_data(result)))
    else:
        print(printable(_result_text(result), keep="\n"))
        print(f"{output}: the recipe and all that was measured")


def _result_text(result: "SearchResult") -> str:
    """Return all tables, and below them how the result was found."""
    from dem_hub.cli.output import table

    texts = [table(head, rows) for head, rows in result_tables(result)]
    return "\n\n".join([*texts, _cost_text(result)])


def result_tables(result: "SearchResult") -> list[_Table]:
    """Return the cross-loss table, the comparison on held-out data, and the coefficients, each as a head and rows."""
    tables = []
    if result.table is not None:
        tables.append(_cross_loss_table(result.table, tuple(result.best.losses)))
    if result.acceptance is not None:
        tables.append(_held_out_table(result.acceptance, tuple(result.best.losses), result.objective.kind))
    tables.append(_coefficient_table(result))
    return tables


def _cross_loss_table(cross_loss: "CrossLoss", names: tuple[str, ...]) -> _Table:
    """Return the losses of the base, and of the base + 1 * each vector, in a row each; a column is a distribution."""
    rows: _Rows = []
    for model, cells in cross_loss.cells.items():
        rows.append((_short(model), *(_with_error(cells[name]) for name in names)))
    return ("loss, 1 of each (error)", *names), rows


def _held_out_table(acceptance: "Acceptance", names: tuple[str, ...], objective: str) -> _Table:
    from dem_hub.search.held_out import FOUND

    rows: _Rows = []
    for label, contender in acceptance.contenders.items():
        losses = [f"{contender.losses[name]:.4f}" for name in names]
        difference = f"{contender.difference:+.4f} ({contender.error:.4f})"
        rows.append((_short(label), *losses, f"{contender.value:.4f}", difference))
    return ("held-out loss", *names, objective, f"minus {FOUND} (error)"), rows


def _coefficient_table(result: "SearchResult") -> _Table:
    ratio = result.mixing_ratio
    rows: _Rows = []
    for name, coefficient in result.coefficients.items():
        if isinstance(coefficient, Mapping):
            rows += [(f"{name} [{group}]", f"{value:+.4f}", "") for group, value in coefficient.items()]
        else:
            rows.append((name, f"{coefficient:+.4f}", f"{ratio.get(name, 0.0):.3f}"))
    return ("vector", "coefficient", "data mixing ratio"), rows


def _cost_text(result: "SearchResult") -> str:
    """Return how the result was found, in a line; in a second one what became of finer coefficients."""
    from dem_hub.search.held_out import FOUND

    trials = "1 trial" if len(result.trials) == 1 else f"{len(result.trials)} trials"
    tokens = sum(result.tokens.values())
    text = f"{result.method}: {trials}, {result.num_forward:.4g} forward passes over {tokens} tokens"
    if result.num_forward_held_out:
        text += f" and {result.num_forward_held_out:.4g} over the held-out ones"
    text += f", {result.seconds:.1f} s; objective {result.loss:.5f}"
    if result.acceptance is not None and result.acceptance.chosen != FOUND:
        text += f"; chosen: {_short(result.acceptance.chosen)}"
    if result.refinement is not None:
        text += f"\n{result.refinement.note()}"
    return text


def _result_data(result: "SearchResult") -> dict[str, Any]:
    """Return the result as JSON data."""
    from dem_hub.search.held_out import FOUND
    from dem_hub.search.records import to_json

    return {
        "coefficients": result.coefficients,
        "loss": result.loss,
        "losses": dict(result.chosen.losses),
        "held_out_loss": result.held_out_loss,
        "baselines": result.baselines,
        "chosen": result.acceptance.chosen if result.acceptance is not None else FOUND,
        "method": result.method,
        "num_forward": result.num_forward,
        "num_forward_held_out": result.num_forward_held_out,
        "seconds": result.seconds,
        "n_trials": len(result.trials),
        "tokens": dict(result.tokens),
        "mixing_ratio": result.mixing_ratio,
        "refinement": to_json(result.refinement),
        "notes": list(result.notes),
    }


def _with_error(cell: "Cell") -> str:
    """Return a loss with its standard error, or with the reason why it has none."""
    error = "one window" if math.isnan(cell.error) else f"{cell.error:.4f}"
    return f"{cell.loss:.4f} ({error})"


def _short(label: str) -> str:
    """Return a label with only the last part of a path, so that a table fits into a terminal."""
    if label == "1/N" or "/" not in label:
        return label
    alone = " alone" if label.endswith(" alone") else ""
    path = label.removesuffix(alone)
    return PurePath(path).name + alone
