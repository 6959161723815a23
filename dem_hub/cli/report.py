"""What vectors and recipes are, in words and numbers for a person or a program, from their configs and headers alone."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dem_hub.checkpoints.tensor_groups import layer_name
from dem_hub.files.sizes import format_size
from dem_hub.merging.config import DEMConfig
from dem_hub.vectors.comparison import Comparison
from dem_hub.vectors.config import TensorRecord, VectorConfig
from dem_hub.vectors.vector import DistributionVector


def vector_data(path: str, vector: DistributionVector) -> dict[str, Any]:
    """A vector as JSON data."""
    data: dict[str, Any] = {"path": path, "kind": "vector", "bytes": vector.nbytes, "base": asdict(vector.base)}
    if vector.config is None:
        return {**data, "codec": vector.codec}
    sizes = vector.tensor_bytes()
    tensors = {name: {**asdict(record), "bytes": sizes[name]} for name, record in vector.config.tensors.items()}
    options = dict(vector.config.codec_options)
    return {
        **data,
        "codec": vector.config.codec,
        "codec_options": options,
        "choice": vector.config.choice,
        "tensors": tensors,
    }


def vector_text(path: str, vector: DistributionVector, *, each: bool) -> str:
    """A vector as a table, with a line for each layer, or for each tensor."""
    lines = [path, f"  base   {vector.base}"]
    if vector.config is None:
        return "\n".join([*lines, f"  codec  lora (a PEFT adapter, read as it is), {format_size(vector.nbytes)}"])
    lines.append(f"  vector {summary(vector.config, vector.nbytes)}")
    if vector.config.choice:
        lines.append(f"  auto   {vector.config.choice}")
    layers: dict[str, list[str]] = {}
    for name in vector.config.tensors:
        layers.setdefault(name if each else layer_name(name), []).append(name)
    sizes = vector.tensor_bytes()
    rows = []
    for layer, names in layers.items():
        records = [vector.config.tensors[name] for name in names]
        norm, error = _norm_and_error(records)
        lowest = min(record.projection for record in records)
        codecs = "+".join(sorted({_codec_text(record) if each else record.codec for record in records}))
        rows.append(
            (
                layer,
                codecs,
                format_size(sum(sizes[name] for name in names)),
                f"{norm:.4g}",
                f"{error:.3g}",
                f"{lowest:.3f}",
            )
        )
    head = ("tensor" if each else "layer", "codec", "size", "norm", "relative error", "projection")
    return "\n".join([*lines, table(head, rows)])


def recipe_text(path: str, recipe: DEMConfig) -> str:
    """A recipe in a few lines."""
    lines = [path, f"  base     {recipe.base}"]
    for name, value in recipe.coefficients.items():
        groups = value.items() if isinstance(value, Mapping) else [("", value)]
        lines += [f"  vector   {number:+.4f} * {name}" + (f" [{group}]" if group else "") for group, number in groups]
    lines.append(f"  dtype    {recipe.dtype or 'as the base'}, {recipe.rounding} rounding, seed {recipe.rounding_seed}")
    if recipe.search:
        lines.append(f"  search   {json.dumps(recipe.search, sort_keys=True)}")
    return "\n".join(lines)


def comparison_text(comparison: Comparison) -> str:
    """The cosines between vectors, as a table."""
    pairs = enumerate(zip(comparison.names, comparison.cosines, strict=True), 1)
    rows = [(f"[{number}] {name}", *(f"{value:.4f}" for value in cosines)) for number, (name, cosines) in pairs]
    return "cosines\n" + table(("", *(f"[{number}]" for number in range(1, len(rows) + 1))), rows)


def summary(config: VectorConfig, nbytes: int) -> str:
    """A vector in a line: codec, size, norm and error."""
    norm, error = _norm_and_error(list(config.tensors.values()))
    codec = " ".join([config.codec, *(f"{name}={value}" for name, value in config.codec_options.items())])
    return f"{codec}, {len(config.tensors)} tensors changed, {format_size(nbytes)}, norm {norm:.4g}, relative error {error:.3g}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under their heads, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        first, *others = zip(row, widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)]))
    return "\n".join(lines)


def _norm_and_error(records: Sequence[TensorRecord]) -> tuple[float, float]:
    """The norm of several deltas together, and their relative error."""
    norm = math.sqrt(sum(record.norm**2 for record in records))
    error = math.sqrt(sum((record.norm * record.relative_error) ** 2 for record in records))
    return norm, error / norm if norm else 0.0


def _codec_text(record: TensorRecord) -> str:
    """A codec and the options that say how much it keeps."""
    options = [
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in record.options.items()
        if name != "seed"
    ]
    return " ".join([record.codec, *options])
