"""`dem-hub info`: what vectors, adapters and recipes are, for a person or a program.

It reads configs and headers alone.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from dem_hub.cli.arguments import OUTPUT, json_option
from dem_hub.cli.command import PATH, argument, command, option
from dem_hub.errors import ConfigError
from dem_hub.hub.foreign_text import printable

if TYPE_CHECKING:
    from dem_hub.merging.config import DEMConfig
    from dem_hub.vectors.comparison import Comparison
    from dem_hub.vectors.config import TensorRecord
    from dem_hub.vectors.vector import DistributionVector


@command(
    "info",
    examples=[
        "dem-hub info me/maths-vector",
        "dem-hub info maths code other/cot-lora --base org/base",
        "dem-hub info me/my-dem --json",
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
@json_option
def info(*, paths: Sequence[str], base: str | None, tensors: bool, mergekit: bool, as_json: bool) -> None:
    """Show the contents of vectors, adapters and recipes.

    Several vectors are also compared: their cosines are printed as a table.
    """
    if mergekit:
        _print_config(paths)
        return

    from dem_hub.files.folders import is_recipe
    from dem_hub.files.names import ADAPTER_CONFIG, RECIPE_CONFIG, VECTOR_CONFIG
    from dem_hub.hub.download import resolve
    from dem_hub.hub.references import VectorSource
    from dem_hub.merging.config import DEMConfig
    from dem_hub.vectors.vector import DistributionVector

    vectors: list[DistributionVector] = []
    data = []
    texts = []
    for path in paths:
        source = VectorSource.parse(path)
        resolved = resolve(source, (RECIPE_CONFIG, VECTOR_CONFIG, ADAPTER_CONFIG))
        # Everything that is read from here on is of the same commit.
        source = replace(source, revision=resolved.commit or source.revision)
        if is_recipe(resolved.folder):
            recipe = DEMConfig.from_pretrained(source)
            data.append({"path": path, "kind": "recipe", **recipe.to_dict()})
            texts.append(_recipe_text(path, recipe))
        else:
            vector = DistributionVector.describe(source)
            vectors.append(vector)
            data.append(_vector_data(path, vector))
            texts.append(_vector_text(path, vector, each_tensor=tensors))
    comparison = _compare(vectors, base) if len(vectors) > 1 else None
    if as_json:
        print(json.dumps({"items": data, "comparison": asdict(comparison) if comparison else None}, indent=2))
        return
    if comparison is not None:
        texts += ["", _comparison_text(comparison)]
    print("\n".join(texts))


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
        return {**data, "codec": vector.codec}
    sizes = vector.tensor_bytes()
    return {
        **data,
        "codec": vector.config.codec,
        "codec_options": dict(vector.config.codec_options),
        "choice": vector.config.choice,
        "tensors": {name: {**asdict(record), "bytes": sizes[name]} for name, record in vector.config.tensors.items()},
    }


def _vector_text(path: str, vector: "DistributionVector", *, each_tensor: bool) -> str:
    """Return a vector as a table, with a line for each layer or for each tensor."""
    from dem_hub.checkpoints.tensor_groups import layer_name
    from dem_hub.cli.output import summary, table
    from dem_hub.files.sizes import format_size

    lines = [path, f"  base   {vector.base}"]
    if vector.config is None:
        lines.append(f"  codec  lora (a PEFT adapter, read as it is), {format_size(vector.nbytes)}")
        return "\n".join(map(printable, lines))
    lines.append(f"  vector {summary(vector.config, vector.nbytes)}")
    if vector.config.choice:
        lines.append(f"  auto   {vector.config.choice}")
    lines_of_table: dict[str, list[str]] = {}
    for name in vector.config.tensors:
        lines_of_table.setdefault(name if each_tensor else layer_name(name), []).append(name)
    sizes = vector.tensor_bytes()
    rows = []
    for label, names in lines_of_table.items():
        records = [vector.config.tensors[name] for name in names]
        nbytes = sum(sizes[name] for name in names)
        rows.append((label, *_cells(records, nbytes, each_tensor=each_tensor)))
    head = ("tensor" if each_tensor else "layer", "codec", "size", "norm", "relative error", "projection")
    return "\n".join([*map(printable, lines), table(head, rows)])


def _cells(records: "Sequence[TensorRecord]", nbytes: int, *, each_tensor: bool) -> tuple[str, ...]:
    """Return codec, size, norm, relative error and projection of the tensors in one line of a table."""
    from dem_hub.cli.output import norm_and_error
    from dem_hub.files.sizes import format_size

    norm, error = norm_and_error(records)
    lowest_projection = min(record.projection for record in records)
    codecs = {_codec_text(record) if each_tensor else record.codec for record in records}
    return "+".join(sorted(codecs)), format_size(nbytes), f"{norm:.4g}", f"{error:.3g}", f"{lowest_projection:.3f}"


def _codec_text(record: "TensorRecord") -> str:
    """Return a codec with the options that say how much it keeps. A seed says nothing about that."""
    words = [record.codec]
    for name, value in record.options.items():
        if name != "seed":
            words.append(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}")
    return " ".join(words)


def _recipe_text(path: str, recipe: "DEMConfig") -> str:
    """Return a recipe in a few lines."""
    lines = [path, f"  base     {recipe.base}"]
    for name, coefficient in recipe.coefficients.items():
        if isinstance(coefficient, Mapping):
            lines += [f"  vector   {value:+.4f} * {name} [{group}]" for group, value in coefficient.items()]
        else:
            lines.append(f"  vector   {coefficient:+.4f} * {name}")
    dtype = recipe.dtype or "as the base"
    lines.append(f"  dtype    {dtype}, {recipe.rounding} rounding, seed {recipe.rounding_seed}")
    if recipe.search:
        lines.append(f"  search   {json.dumps(recipe.search, sort_keys=True)}")
    return "\n".join(map(printable, lines))


def _comparison_text(comparison: "Comparison") -> str:
    """Return the cosines between vectors as a table. Columns have numbers, as names would be too wide."""
    from dem_hub.cli.output import table

    numbers = [f"[{number}]" for number in range(1, len(comparison.names) + 1)]
    rows = []
    for number, name, cosines in zip(numbers, comparison.names, comparison.cosines, strict=True):
        rows.append((f"{number} {name}", *(f"{cosine:.4f}" for cosine in cosines)))
    return "cosines\n" + table(("", *numbers), rows)
