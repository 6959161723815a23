"""`dem-hub info`: what vectors, adapters and recipes are, for a person or a program.

One vector or recipe is described by its config and headers. The cosines between several vectors need their tensors, so
their weights are downloaded.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.cli.arguments import OUTPUT, json_option
from dem_hub.cli.command import PATH, argument, command, option
from dem_hub.cli.pictures import check_pictures, plot_option, theme_option
from dem_hub.defaults import Theme
from dem_hub.errors import ConfigError

if TYPE_CHECKING:
    from dem_hub.hub.references import VectorSource
    from dem_hub.vectors.comparison import Comparison
    from dem_hub.vectors.vector import DistributionVector


@command(
    "info",
    examples=[
        "dem-hub info me/maths-vector",
        "dem-hub info maths code other/cot-lora --base org/base",
        "dem-hub info maths code --base org/base --plot pictures",
        "dem-hub info me/my-dem --json",
        "dem-hub info me/my-dem worst-dem",
        "dem-hub info me/my-dem --mergekit",
    ],
)
@argument(
    "paths",
    type=PATH,
    nargs=-1,
    required=True,
    metavar="PATH...",
    help="Hub id or folder of a vector, an adapter or a recipe.",
)
@option(
    "--base",
    type=PATH,
    group="Comparison",
    metavar="BASE",
    help="Base for the cosines between several vectors, if they do not name it.",
)
@option("--tensors", is_flag=True, group=OUTPUT, help="Print a line for each tensor instead of each layer.")
@option("--mergekit", is_flag=True, group=OUTPUT, help="Print a recipe as a config of mergekit.")
@plot_option
@theme_option
@json_option
def info(
    *,
    paths: Sequence[str],
    base: str | None,
    tensors: bool,
    mergekit: bool,
    plot: str | None,
    theme: Theme,
    as_json: bool,
) -> None:
    """Show the contents of vectors, adapters and recipes.

    Several vectors are also compared: their norms and cosines are printed as a table. Of two recipes, what differs is
    printed. Pictures are of the norms of vectors by layer, and of the cosines; those that are there are replaced.
    """
    if mergekit:
        _print_config(paths)
        return
    if plot:
        check_pictures(plot, (), overwrite=True)

    from dem_hub.merging.config import DEMConfig
    from dem_hub.merging.report import difference_report, recipe_report
    from dem_hub.vectors.report import vector_report
    from dem_hub.vectors.vector import DistributionVector

    sources = _sources(paths)
    are_compared = [names_recipe for _, names_recipe in sources].count(False) > 1
    vectors: list[DistributionVector] = []
    data = []
    recipes: dict[str, DEMConfig] = {}
    reports = []
    for path, (source, names_recipe) in zip(paths, sources, strict=True):
        if names_recipe:
            recipe = DEMConfig.from_pretrained(source)
            data.append({"path": path, "kind": "recipe", **recipe.to_dict()})
            recipes[path] = recipe
            reports.append(recipe_report(recipe, path))
            continue
        vector = DistributionVector.describe(source)
        if are_compared or (plot and vector.config is None):  # an adapter's norms are in its weights
            vector = DistributionVector.from_pretrained(source)
        vectors.append(vector)
        data.append(_vector_data(path, vector))
        reports.append(vector_report(vector, path, each_tensor=tensors))
    comparison = _compare(vectors, base) if are_compared else None
    if plot:
        _draw(vectors, comparison, base, Path(plot), theme)
    if as_json:
        print(json.dumps({"items": data, "comparison": asdict(comparison) if comparison else None}, indent=2))
        return
    if comparison is not None:
        reports.append(comparison.report())
    if len(recipes) == 2:
        reports.append(difference_report(recipes))
    print("\n\n".join(report.text() for report in reports))


def _sources(paths: Sequence[str]) -> "list[tuple[VectorSource, bool]]":
    """Return what the paths name, each at one commit, and whether it is a recipe."""
    from dem_hub.files.folders import is_recipe
    from dem_hub.files.names import ADAPTER_CONFIG, RECIPE_CONFIG, VECTOR_CONFIG
    from dem_hub.hub.download import resolve
    from dem_hub.hub.references import VectorSource

    sources = []
    for path in paths:
        source = VectorSource.parse(path)
        resolved = resolve(source, (RECIPE_CONFIG, VECTOR_CONFIG, ADAPTER_CONFIG))
        sources.append((replace(source, revision=resolved.commit or source.revision), is_recipe(resolved.folder)))
    return sources


def _draw(
    vectors: "Sequence[DistributionVector]",
    comparison: "Comparison | None",
    base: str | None,
    folder: Path,
    theme: Theme,
) -> None:
    from dem_hub.files.distinct_names import distinct_names
    from dem_hub.plotting import save_all

    names = distinct_names([Path(vector.name) for vector in vectors])
    pictures = {}
    for vector, parts in zip(vectors, names, strict=True):
        pictures["-".join(["norms", *parts])] = vector.plot(base=base, theme=theme)
    if comparison is not None:
        pictures["cosines"] = comparison.plot(theme=theme)
    save_all(pictures, folder)


def _print_config(paths: Sequence[str]) -> None:
    from dem_hub.hub.references import VectorSource
    from dem_hub.mergekit.text import config_text

    if len(paths) != 1:
        raise ConfigError(f"--mergekit prints one recipe, and there are {len(paths)}. Name them one after the other.")
    print(config_text(VectorSource.parse(paths[0])), end="")


def _compare(vectors: "list[DistributionVector]", base: str | None) -> "Comparison":
    from dem_hub.checkpoints.opening import open_base
    from dem_hub.files.names import MODEL_FILES
    from dem_hub.hub.download import resolve
    from dem_hub.hub.references import VectorSource
    from dem_hub.vectors.comparison import compare

    source = VectorSource.parse(base) if base else vectors[0].base.source
    return compare(vectors, open_base(resolve(source, MODEL_FILES)))


def _vector_data(path: str, vector: "DistributionVector") -> dict[str, Any]:
    """Return a vector as JSON data."""
    data: dict[str, Any] = {"path": path, "kind": "vector", "bytes": vector.nbytes, "base": asdict(vector.base)}
    if vector.config is None:
        modules = {name: asdict(module) for name, module in vector.adapted_modules().items()}
        return {**data, "codec": vector.codec, "modules": modules}
    sizes = vector.tensor_bytes()
    return {
        **data,
        "codec": vector.config.codec,
        "codec_options": dict(vector.config.codec_options),
        "choice": vector.config.choice,
        "tensors": {name: {**asdict(record), "bytes": sizes[name]} for name, record in vector.config.tensors.items()},
    }
