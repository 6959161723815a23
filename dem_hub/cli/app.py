"""`dem-hub`: the library from a shell. It parses, calls, and prints; data goes to stdout, progress and errors to stderr.

A user's mistake is one readable message and exit status 2, never a traceback.
"""

import argparse
import atexit
import gc
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub._version import __version__
from dem_hub.cli.arguments import number, split_pairs
from dem_hub.cli.eval import add_eval
from dem_hub.cli.search import add_search
from dem_hub.errors import ConfigError, DemHubError

if TYPE_CHECKING:
    from dem_hub.merging.opening import OpenedRecipe
    from dem_hub.vectors.comparison import Comparison
    from dem_hub.vectors.vector import DistributionVector

_CODEC_OPTIONS = ("max_bytes", "max_error", "rank", "energy", "group", "density", "bits", "dtype", "seed")


def run() -> None:
    """Run the command line as a process of its own, which ends at once: to take torch apart object by object takes a tenth of a second."""
    status = main()
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    if others or "torch" not in sys.modules:
        sys.exit(status)
    atexit._run_exitfuncs()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):  # a process may have been started without
            stream.flush()
    except (OSError, ValueError):  # nobody reads any more, of which Python tells in its own way
        sys.exit(status)
    os._exit(status)


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


@contextmanager
def _uncollected() -> Iterator[None]:
    """Import, and let no collection of garbage look at it, now or later: torch makes a million objects to stay, a third of its time."""
    if "torch" in sys.modules or not gc.isenabled():  # then this is no new process, and the objects are somebody's
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dem-hub", description="Distribution-edited models: base + sum of coefficient * vector."
    )
    parser.add_argument("--version", action="version", version=f"dem-hub {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (
        _add_extract,
        _add_info,
        _add_merge,
        _add_export,
        add_search,
        add_eval,
        _add_push,
        _add_list,
        _add_demo,
    ):
        add(commands)
    return parser


def _add_extract(commands: Any) -> None:
    parser = commands.add_parser("extract", help="take the vector FINETUNED - BASE")
    parser.add_argument("base", help="Hub id or folder of the base")
    parser.add_argument("finetuned", help="Hub id or folder of the fine-tune")
    parser.add_argument("-o", "--output", required=True, help="folder for the vector")
    parser.add_argument(
        "--codec", default="auto", help="auto (default), lrsign, sign, random, int4, int8, nf4, lowrank, exact or dense"
    )
    parser.add_argument(
        "--max-bytes", help="auto: a number, or for instance 20MB, or 3%% of the delta in bf16 (default 9%%)"
    )
    parser.add_argument("--max-error", type=float, help="auto: or the largest relative error of a tensor")
    parser.add_argument("--rank", type=int, help="lowrank, lrsign: singular directions to keep (default 32)")
    parser.add_argument("--energy", type=float, help="lowrank: or the share of the squared norm to keep, 0 to 1")
    parser.add_argument(
        "--group",
        type=int,
        help="lrsign, sign: keep the sign of the largest of so many neighbours (default 1: of each)",
    )
    parser.add_argument("--density", type=float, help="random: the share of elements to keep, 0 to 1")
    parser.add_argument("--bits", type=int, help="random: 4 or 8")
    parser.add_argument("--dtype", help="dense: float32 or bfloat16; lowrank: the same, int8 or int4, of the factors")
    parser.add_argument("--seed", type=int, help="random: another draw (default 0)")
    parser.set_defaults(run=_extract)


def _add_info(commands: Any) -> None:
    parser = commands.add_parser("info", help="show what vectors or recipes are")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="Hub id or folder of a vector, an adapter or a recipe")
    parser.add_argument("--base", help="the base, for cosines between several vectors, where they do not name it")
    parser.add_argument("--tensors", action="store_true", help="a line for each tensor, not for each layer")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_info)


def _add_merge(commands: Any) -> None:
    parser = commands.add_parser("merge", help="write the merged model as an ordinary transformers folder")
    parser.add_argument("model", help="a base (with --vector) or a recipe")
    parser.add_argument(
        "--vector",
        action="append",
        default=[],
        metavar="ID[@REVISION][//SUBFOLDER]=COEFFICIENT",
        help="a vector; repeat",
    )
    parser.add_argument("-o", "--output", help="folder for the model")
    parser.add_argument(
        "--push-to-hub", metavar="REPO_ID", help="push it there; without -o file by file, with the disk of one file"
    )
    parser.add_argument("--private", action="store_true", default=None, help="if the repository is made")
    parser.add_argument("--dtype", help="float32, float16 or bfloat16 (default: the recipe's, or the base's own)")
    parser.add_argument("--rounding", choices=("stochastic", "nearest"), help="default: stochastic, unbiased")
    parser.add_argument("--rounding-seed", type=int, help="of the stochastic rounding (default 0)")
    parser.add_argument("--max-shard-size", default="5GB", help="where to begin another file (default 5GB)")
    parser.add_argument(
        "--allow-base-mismatch", action="store_true", help="put vectors on a base they were not made from"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything from the headers, say what it will take, and stop"
    )
    parser.set_defaults(run=_merge)


def _add_export(commands: Any) -> None:
    parser = commands.add_parser("export", help="write the weighted sum of vectors as one PEFT LoRA adapter")
    parser.add_argument("model", help="a base (with --vector) or a recipe")
    parser.add_argument(
        "--vector",
        action="append",
        default=[],
        metavar="ID[@REVISION][//SUBFOLDER]=COEFFICIENT",
        help="a vector; repeat",
    )
    parser.add_argument("-o", "--output", required=True, help="folder for the adapter")
    parser.add_argument(
        "--peft", action="store_true", default=True, help="as a PEFT adapter: the default, and the one format there is"
    )
    parser.add_argument(
        "--rank", type=int, help="of each module at the most (default: exact, which only low-rank vectors allow)"
    )
    parser.set_defaults(run=_export)


def _add_push(commands: Any) -> None:
    parser = commands.add_parser("push", help="push a vector, a store, a recipe or a merged model to the Hub")
    parser.add_argument("folder", help="what to push")
    parser.add_argument("repo_id", help="where to: namespace/name; made where there is none")
    parser.add_argument("--base-model", help="what the Hub calls the base, where it is a folder of this machine")
    parser.add_argument("--subfolder", default="", help="of a vector: where in the repository")
    parser.add_argument(
        "--include-vectors", action="store_true", help="of a recipe: put its local vectors into the same commit"
    )
    parser.add_argument("--private", action="store_true", default=None, help="if the repository is made")
    parser.add_argument("--revision", help="branch to push to (default main)")
    parser.add_argument("--create-pr", action="store_true", default=None, help="open a pull request")
    parser.add_argument("--commit-message", help="title of the commit")
    parser.set_defaults(run=_push)


def _add_list(commands: Any) -> None:
    parser = commands.add_parser("list", help="find the vectors and LoRA adapters of a base on the Hub")
    parser.add_argument("--base", required=True, help="Hub id of the base")
    parser.add_argument("--author", help="only of this user or organisation")
    parser.add_argument("--search", help="only with this in their names")
    parser.add_argument("--limit", type=int, help="how many at the most")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_list)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser("demo", help="the whole method on a real model, in minutes")
    parser.add_argument(
        "-o", "--output", default="dem-hub-demo", help="folder for everything it makes (default dem-hub-demo)"
    )
    parser.set_defaults(run=_demo)


def _extract(options: argparse.Namespace) -> None:
    from dem_hub.files.folders import VECTOR, check_target

    with _uncollected():
        from dem_hub.cli.report import summary
        from dem_hub.vectors.vector import DistributionVector

    check_target(Path(options.output), VECTOR)  # before hours of work
    chosen = {name: getattr(options, name) for name in _CODEC_OPTIONS if getattr(options, name) is not None}
    vector = DistributionVector.extract(options.base, options.finetuned, codec=options.codec, **chosen)
    vector.save_pretrained(options.output)
    assert vector.config is not None
    print(f"{options.output}: {summary(vector.config, vector.nbytes)}")
    if vector.config.choice:
        print(f"auto: {vector.config.choice}")


def _open(options: argparse.Namespace, *, check_base: bool = True, headers_only: bool = False) -> "OpenedRecipe":
    """The model and vectors that a command names."""
    from dem_hub.hub.references import VectorSource
    from dem_hub.merging.opening import open_base_and_vectors, open_recipe

    source = VectorSource.parse(options.model)
    given = split_pairs(options.vector, "--vector")
    vectors = {VectorSource.parse(name): number(value, f"coefficient of '{name}'") for name, value in given.items()}
    if vectors:
        return open_base_and_vectors(source, vectors, check_base=check_base, headers_only=headers_only)
    return open_recipe(source, check_base=check_base, headers_only=headers_only)


def _export(options: argparse.Namespace) -> None:
    with _uncollected():
        from dem_hub.models.lora_export import export_adapter

    made = export_adapter(_open(options), Path(options.output), rank=options.rank)
    print(f"{options.output}: rank {min(made.ranks)} to {max(made.ranks)}, relative error {made.error:.3g}")
    if made.left_out:
        names = ", ".join(made.left_out[:3]) + (" ..." if len(made.left_out) > 3 else "")
        print(f"left out, as no LoRA can change them: {len(made.left_out)} tensors ({names})")


def _merge(options: argparse.Namespace) -> None:
    with _uncollected():
        from dem_hub.models.export import estimate_export, export
        from dem_hub.models.planned import PlannedModel
        from dem_hub.models.upload import estimate_push, push_export, push_merged

    repo_id, target = options.push_to_hub, Path(options.output) if options.output else None
    if target is None and repo_id is None:
        raise ConfigError(
            "There is nowhere to put the model. Give a folder (-o), a repository (--push-to-hub), or both."
        )
    details = {name: getattr(options, name) for name in ("dtype", "max_shard_size", "allow_base_mismatch")}

    def opened(*, headers_only: bool = False) -> "OpenedRecipe":
        found = _open(options, check_base=not options.allow_base_mismatch, headers_only=headers_only)
        changes = {
            name: getattr(options, name) for name in ("rounding", "rounding_seed") if getattr(options, name) is not None
        }
        return replace(found, recipe=replace(found.recipe, **changes))

    seen = opened(headers_only=True)
    model = PlannedModel.of(seen, **details)
    print(estimate_push(model) if target is None else estimate_export(model, target), file=sys.stderr)
    if options.dry_run:
        return
    if seen.remotes:
        model = PlannedModel.of(opened(), **details)
    if target is None:
        info = push_merged(model, repo_id, private=options.private)
    else:
        export(model, target)
        print(target)
        if repo_id is None:
            return
        info = push_export(target, repo_id, private=options.private)
    print(info.commit_url)


def _demo(options: argparse.Namespace) -> None:
    import logging

    from dem_hub.demo.run import run_demo

    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    logging.getLogger("dem_hub").setLevel(logging.INFO)
    print(run_demo(Path(options.output)))


def _info(options: argparse.Namespace) -> None:
    from dem_hub.cli.report import comparison_text, recipe_text, vector_data, vector_text
    from dem_hub.files.folders import is_recipe
    from dem_hub.files.names import ADAPTER_CONFIG, RECIPE_CONFIG, VECTOR_CONFIG
    from dem_hub.hub.download import resolve
    from dem_hub.hub.references import VectorSource
    from dem_hub.merging.config import DEMConfig
    from dem_hub.vectors.vector import DistributionVector

    vectors, data, texts = [], [], []
    for path in options.paths:
        source = VectorSource.parse(path)
        found = resolve(source, (RECIPE_CONFIG, VECTOR_CONFIG, ADAPTER_CONFIG))
        source = replace(source, revision=found.commit or source.revision)  # what comes next is of the same commit
        if is_recipe(found.folder):
            recipe = DEMConfig.from_pretrained(source)
            data.append({"path": path, "kind": "recipe", **recipe.to_dict()})
            texts.append(recipe_text(path, recipe))
        else:
            vectors.append(DistributionVector.describe(source))
            data.append(vector_data(path, vectors[-1]))
            texts.append(vector_text(path, vectors[-1], each=options.tensors))
    comparison = _compare(vectors, options.base) if len(vectors) > 1 else None
    if options.json:
        print(json.dumps({"items": data, "comparison": asdict(comparison) if comparison else None}, indent=2))
    else:
        print("\n".join([*texts, *(["", comparison_text(comparison)] if comparison is not None else [])]))


def _push(options: argparse.Namespace) -> None:
    from dem_hub.cli.push_folder import push_folder

    wanted = {name: getattr(options, name) for name in ("private", "revision", "create_pr", "commit_message")}
    details = {
        "base_model": options.base_model,
        "subfolder": options.subfolder,
        "include_vectors": options.include_vectors,
    }
    given = {name: value for name, value in {**wanted, **details}.items() if value}
    info = push_folder(Path(options.folder), options.repo_id, **given)
    print(info.pr_url or info.commit_url)


def _list(options: argparse.Namespace) -> None:
    from dem_hub.cli.report import table
    from dem_hub.hub.listing import list_vectors

    found = list_vectors(options.base, author=options.author, search=options.search, limit=options.limit)
    if options.json:
        print(
            json.dumps(
                [
                    {**asdict(one), "last_modified": one.last_modified and one.last_modified.isoformat()}
                    for one in found
                ],
                indent=2,
            )
        )
        return
    rows = [
        (one.repo_id, one.kind, str(one.downloads or 0), f"{one.last_modified:%Y-%m-%d}" if one.last_modified else "")
        for one in found
    ]
    print(table(("vector", "kind", "downloads", "changed"), rows))


def _compare(vectors: "list[DistributionVector]", base: str | None) -> "Comparison":
    from dem_hub.checkpoints.base_model import Base
    from dem_hub.files.names import MODEL_FILES
    from dem_hub.hub.download import resolve
    from dem_hub.hub.references import VectorSource
    from dem_hub.vectors.comparison import compare

    source = VectorSource.parse(base) if base else vectors[0].base.source
    return compare(vectors, Base(resolve(source, MODEL_FILES)))


if __name__ == "__main__":
    run()
