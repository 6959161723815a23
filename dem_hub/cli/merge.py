"""`dem-hub merge`: the merged model as an ordinary transformers folder, on the Hub, or both."""

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, get_args

import click

from dem_hub.cli.arguments import (
    HUB,
    MODEL,
    OUTPUT,
    base_quantized_option,
    overwrite_option,
    private_option,
    verify_option,
)
from dem_hub.cli.command import PATH, command, option
from dem_hub.cli.opening import model_argument, open_named, vector_option
from dem_hub.cli.startup import heavy_imports
from dem_hub.cli.uploads import base_model_option, include_code_option, shown_push
from dem_hub.defaults import MAX_SHARD_SIZE, Rounding
from dem_hub.errors import ConfigError
from dem_hub.hub.foreign_text import printable
from dem_hub.mergekit.document import is_document

if TYPE_CHECKING:
    from dem_hub.hub.commits import PushOptions
    from dem_hub.merging.opened_recipe import OpenedRecipe
    from dem_hub.models.planned import PlannedModel


@command(
    "merge",
    examples=[
        "dem-hub merge me/my-dem -o merged",
        "dem-hub merge org/base --vector me/maths-vector=0.4 --vector other/cot-lora=0.3 -o merged",
        "dem-hub merge me/my-dem --push-to-hub me/my-merged-model --private",
        "dem-hub merge org/base --vector me/qlora=1 --base-quantized nf4,double_quant -o merged",
        "dem-hub merge mergekit.yml -o merged",
        "dem-hub merge me/my-dem -o merged --dry-run",
        "torchrun --nnodes=8 -m dem_hub.cli merge me/my-dem -o merged --by-ranks",
    ],
)
@model_argument
@vector_option
@verify_option
@option(
    "--allow-base-mismatch", is_flag=True, group=MODEL, help="Accept vectors that were extracted from another base."
)
@option("--dtype", group=MODEL, help="float32, float16 or bfloat16. Default: that of the recipe, or of the base.")
@option(
    "--rounding",
    type=click.Choice(get_args(Rounding)),
    group=MODEL,
    help="Rounding to 16 bits. Default: that of the recipe, or stochastic, which is unbiased.",
)
@option(
    "--rounding-seed", type=int, group=MODEL, help="Seed of stochastic rounding. Default: that of the recipe, or 0."
)
@base_quantized_option
@option("-o", "--output", type=PATH, group=OUTPUT, metavar="FOLDER", help="Folder for the model.")
@option(
    "--max-shard-size", default=MAX_SHARD_SIZE, group=OUTPUT, metavar="SIZE", help="Maximum size of one weights file."
)
@overwrite_option
@option(
    "--by-ranks",
    is_flag=True,
    group=OUTPUT,
    help="Under torchrun: each process writes some of the weights files. All must see the folder.",
)
@option("--dry-run", is_flag=True, group=OUTPUT, help="Check everything from file headers, print the cost, and exit.")
@option(
    "--push-to-hub",
    "repo_id",
    group=HUB,
    metavar="REPO_ID",
    help="Push the merged model to this repository. Without -o, files are merged and uploaded one at a time.",
)
@base_model_option
@include_code_option
@private_option
def merge(
    *,
    model: str,
    vectors: Sequence[str],
    rounding: str | None,
    rounding_seed: int | None,
    base_quantized: str | None,
    output: str | None,
    repo_id: str | None,
    private: bool,
    base_model: str | None,
    include_code: bool,
    overwrite: bool,
    by_ranks: bool,
    dry_run: bool,
    **plan_options: Any,
) -> None:
    """Merge vectors into the base and save an ordinary transformers model.

    A file that ends in .yml or .yaml is read as a mergekit config.

    The cost is printed on stderr before anything is written. An interrupted merge resumes where it stopped.
    """
    contents: dict[str, Any] = {"base_model": base_model, "include_code": include_code}
    of_push = {"private": private, **contents}
    _check_arguments(model, output, repo_id, of_push, by_ranks=by_ranks, dry_run=dry_run)

    with heavy_imports():
        from dem_hub.models.export import estimate_export
        from dem_hub.models.planned import PlannedModel
        from dem_hub.models.upload import estimate_push, push_export, push_merged

    recipe_changes = {"rounding": rounding, "rounding_seed": rounding_seed, "base_quantized": base_quantized}
    check_base = not plan_options["allow_base_mismatch"]
    target = Path(output) if output else None

    opened = _open(model, vectors, recipe_changes, check_base=check_base, headers_only=True)
    planned = PlannedModel.of(opened, **plan_options)
    cost = estimate_push(planned) if target is None else estimate_export(planned, target)
    if target is not None and not opened.remotes:  # else it is looked at when the weights are here
        _is_needed(planned, target, overwrite=overwrite)
    _print_once(cost, sys.stderr, by_ranks=by_ranks)
    if dry_run:
        if repo_id is not None:
            with shown_push(dry_run=True):
                push_merged(planned, repo_id, **contents)
        return

    if opened.remotes:  # only headers are here
        opened = _open(model, vectors, recipe_changes, check_base=check_base)
        planned = PlannedModel.of(opened, **plan_options)
    # Without the option, the Hub decides: an organization may have a default of its own.
    push_options: PushOptions = {"private": True} if private else {}
    if target is not None:
        _export(planned, target, overwrite=overwrite, by_ranks=by_ranks)
    if repo_id is not None:
        with shown_push(dry_run=False):
            if target is not None:
                commit = push_export(target, repo_id, **contents, **push_options)
            else:
                commit = push_merged(planned, repo_id, **contents, **push_options)
            print(printable(commit.commit_url))


def _check_arguments(
    model: str,
    output: str | None,
    repo_id: str | None,
    of_push: Mapping[str, Any],
    *,
    by_ranks: bool,
    dry_run: bool,
) -> None:
    if not output and repo_id is None:
        raise ConfigError(
            "There is nowhere to put the model. Give a folder (-o), a repository (--push-to-hub), or both."
        )
    if by_ranks and (output is None or repo_id is not None):
        raise ConfigError("--by-ranks writes a folder (-o). Push it afterwards, from one process: `dem-hub push`.")
    if repo_id is None and any(of_push.values()):
        raise ConfigError("--private, --base-model and --include-code are for --push-to-hub, which is not given.")
    if dry_run and is_document(model):
        raise ConfigError(f"'{model}' is a mergekit config. Its vectors are extracted first, so it has no --dry-run.")


def _export(planned: "PlannedModel", target: Path, *, overwrite: bool, by_ranks: bool) -> None:
    """Write the model into a folder that lacks it."""
    from dem_hub.models.export import export
    from dem_hub.models.ranks import export_by_ranks

    write = export_by_ranks if by_ranks else export
    if _is_needed(planned, target, overwrite=overwrite):
        write(planned, target)
    else:
        _print_once(f"'{target}' has this model already.", sys.stderr, by_ranks=by_ranks)
    _print_once(target, sys.stdout, by_ranks=by_ranks)


def _print_once(text: object, file: TextIO, *, by_ranks: bool) -> None:
    """Print a line, which all processes of torchrun have, from the first of them."""
    if not by_ranks or os.environ.get("RANK", "0") == "0":
        print(text, file=file)


def _is_needed(planned: "PlannedModel", target: Path, *, overwrite: bool) -> bool:
    """Check whether a folder lacks the model, and refuse one in which it may not be written."""
    from dem_hub.files.folders import MERGED, check_output
    from dem_hub.models.export import is_exported, is_interrupted

    if not overwrite and is_exported(planned, target):
        return False
    check_output(target, MERGED, overwrite=overwrite or is_interrupted(target))
    return True


def _open(
    model: str,
    vectors: Sequence[str],
    recipe_changes: dict[str, Any],
    *,
    check_base: bool,
    headers_only: bool = False,
) -> "OpenedRecipe":
    """Open what was named, and change its recipe to what was given."""
    if is_document(model):
        opened = _open_config(model, vectors)
    else:
        opened = open_named(model, vectors, check_base=check_base, headers_only=headers_only)
    return opened.with_changes(recipe_changes)


def _open_config(path: str, vectors: Sequence[str]) -> "OpenedRecipe":
    """Open what a mergekit config names."""
    from dem_hub.mergekit.document import Document
    from dem_hub.mergekit.opening import open_document

    if vectors:
        raise ConfigError(f"'{path}' is a mergekit config and names its own models; leave --vector out.")
    return open_document(Document.read(Path(path)))
