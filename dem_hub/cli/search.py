"""`dem-hub search`: the options of `search_coefficients`, and its result as tables or as JSON.

An option that the function has under the same name is passed on as it is; the function checks it.
"""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
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
from dem_hub.cli.pictures import check_pictures, plot_option, theme_option
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
    Theme,
)
from dem_hub.errors import ConfigError

if TYPE_CHECKING:
    from dem_hub.search import SearchResult

OBJECTIVE_GROUP = "Objective"


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
    "--regmean",
    is_flag=True,
    group=OBJECTIVE_GROUP,
    help="Also make RegMean vectors, in the search's own forward passes. They are kept, with coefficient 1, only if they "
    "are better on held-out data.",
)
@option(
    "--own-data",
    multiple=True,
    group=OBJECTIVE_GROUP,
    metavar="VECTOR=NAME",
    help="For --regmean: the distribution that a vector was trained on, if its name does not end like the vector's. Can "
    "be repeated.",
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
    help="Also save the logits (15 kB a token), and keep them in --cache. Adding a vector then costs one forward pass.",
)
@plot_option
@theme_option
@json_option
def search(
    *,
    base: str,
    vectors: Sequence[str],
    data: Sequence[str],
    columns: Sequence[str],
    weights: Sequence[str],
    regmean: bool,
    own_data: Sequence[str],
    method: str,
    sampler: str | None,
    storage: str | None,
    output: str,
    overwrite: bool,
    with_logits: bool,
    plot: str | None,
    theme: Theme,
    as_json: bool,
    **search_options: Any,
) -> None:
    """Search for the coefficients with the lowest validation loss and save a recipe."""
    from dem_hub.files.folders import RECIPE, check_output
    from dem_hub.search import Optuna, SearchResult, search_coefficients
    from dem_hub.search.pictures import PictureKind, picture_kinds
    from dem_hub.search.report import report

    # Before hours of work.
    check_output(Path(output), RECIPE, overwrite=overwrite)
    if plot:
        check_pictures(plot, get_args(PictureKind), overwrite=overwrite)
    if (sampler or storage) and method not in (METHOD, Optuna.name):
        raise ConfigError(f"--sampler and --storage are for --method optuna, and the method is {method}.")
    if own_data and not regmean:
        raise ConfigError("--own-data is for --regmean, which is not given.")
    datasets = split_pairs(data, "--data", "maths=maths.jsonl")
    weight_of = {}
    for name, text in split_pairs(weights, "--weight", "maths=2").items():
        weight_of[name] = number(text, f"weight of '{name}'")
    result = search_coefficients(
        base,
        vectors,
        datasets,
        columns=split_columns(columns),
        method=Optuna(sampler or "gp", storage=storage) if sampler or storage else method,
        weights=weight_of,
        regmean=split_pairs(own_data, "--own-data", "maths-vector=maths.jsonl") if regmean else False,
        keep_logits=with_logits and search_options["cache"] is not None,
        **search_options,
    )
    result.save_pretrained(output, with_logits=with_logits, exist_ok=overwrite)
    if result.kept_regmean is not None:
        # Its vectors are those of the folder now.
        result = SearchResult.from_pretrained(output)
    if plot:
        result.plot_all(plot, theme=theme)
    if as_json:
        print(json.dumps(_result_data(result)))
    else:
        folder = shlex.quote(output)
        next_steps = [
            f"Saved in {folder}: the recipe and all that was measured.",
            f"Next: dem-hub merge {folder} -o merged, or dem-hub push {folder} me/my-dem",
        ]
        if plot:
            next_steps.insert(1, f"Drawn in {shlex.quote(plot)}: {', '.join(picture_kinds(result))}.")
        print(report(result, next_steps).text())


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
        "regmean": _regmean_data(result),
        "notes": list(result.notes),
    }


def _regmean_data(result: "SearchResult") -> dict[str, Any] | None:
    """Return what came of RegMean as JSON data; `None` if it was not asked for, or could not be compared."""
    outcome = result.regmean
    if outcome is None:
        return None
    return {
        "kept": outcome.is_kept,
        "gain": -outcome.contender.difference,
        "error": outcome.contender.error,
        "held_out_loss": outcome.contender.value,
        "plain_held_out_loss": outcome.plain_loss,
        "plain_coefficients": outcome.plain.coefficients,
        "own_data": dict(outcome.own),
    }
