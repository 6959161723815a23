"""What is shown of a vector, in a shell and in a notebook: a line for each layer or tensor, from config and headers."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dem_hub.checkpoints.tensor_groups import layer_name, natural_order
from dem_hub.files.sizes import format_size
from dem_hub.hub.report import Report, Table
from dem_hub.vectors.config import TensorRecord, VectorConfig
from dem_hub.vectors.lora.summary import AdaptedModule

if TYPE_CHECKING:
    from dem_hub.vectors.vector import DistributionVector


def vector_report(vector: "DistributionVector", title: str, *, each_tensor: bool = False) -> Report:
    """Return a vector as a table.

    Args:
        vector ([`DistributionVector`]): The vector.
        title (`str`): What it is called.
        each_tensor (`bool`): A line for each tensor instead of each layer.
    """
    lines = [f"base    {vector.base}"]
    if vector.config is None:
        lines.append(f"vector  lora (a PEFT adapter, read as it is), {format_size(vector.nbytes)}")
        return Report(title, (lines, _adapter_table(vector.adapted_modules(), each_tensor=each_tensor)))
    lines.append(f"vector  {summary(vector.config, vector.nbytes)}")
    if vector.config.choice:
        lines.append(f"auto    {vector.config.choice}")
    table = _table(vector.config, vector.tensor_bytes(), each_tensor=each_tensor)
    return Report(title, (lines, table))


def summary(config: VectorConfig, nbytes: int) -> str:
    """Return a vector in one line: codec, number of tensors, size, norm and relative error."""
    norm, error = _norm_and_error(list(config.tensors.values()))
    codec = " ".join([config.codec, *(f"{name}={value}" for name, value in config.codec_options.items())])
    tensors = f"{len(config.tensors)} tensors changed"
    return f"{codec}, {tensors}, {format_size(nbytes)}, norm {norm:.4g}, relative error {error:.3g}"


def _table(config: VectorConfig, sizes: dict[str, int], *, each_tensor: bool) -> Table:
    rows = []
    for label, names in _lines(list(config.tensors), each_tensor=each_tensor).items():
        records = [config.tensors[name] for name in names]
        norm, error = _norm_and_error(records)
        codecs = {_codec_text(record) if each_tensor else record.codec for record in records}
        size = format_size(sum(sizes[name] for name in names))
        projection = min(record.projection for record in records)
        rows.append((label, "+".join(sorted(codecs)), size, f"{norm:.4g}", f"{error:.3g}", f"{projection:.3f}"))
    return Table((_first_head(each_tensor), "codec", "size", "norm", "relative error", "projection"), rows)


def _adapter_table(modules: dict[str, AdaptedModule], *, each_tensor: bool) -> Table:
    """Return the modules of an adapter; what its files alone do not tell is a dash."""
    rows = []
    for label, names in _lines(list(modules), each_tensor=each_tensor).items():
        parts = [modules[name] for name in names]
        ranks = sorted({part.rank for part in parts if part.rank is not None})
        norm = "-"
        if all(part.norm is not None for part in parts):
            norm = f"{math.hypot(*(part.norm or 0.0 for part in parts)):.4g}"
        size = format_size(sum(part.nbytes for part in parts))
        rows.append((label, "+".join(map(str, ranks)) or "-", size, norm))
    return Table((_first_head(each_tensor), "rank", "size", "norm"), rows)


def _lines(names: Sequence[str], *, each_tensor: bool) -> dict[str, list[str]]:
    """Return the names of tensors or modules by the line that they are in, layer 2 before layer 10."""
    lines: dict[str, list[str]] = {}
    for name in sorted(names, key=natural_order):
        lines.setdefault(name if each_tensor else layer_name(name), []).append(name)
    return lines


def _first_head(each_tensor: bool) -> str:  # noqa: FBT001
    return "tensor" if each_tensor else "layer"


def _codec_text(record: TensorRecord) -> str:
    """Return a codec with the options that say how much it keeps. A seed says nothing about that."""
    words = [record.codec]
    for name, value in record.options.items():
        if name != "seed":
            words.append(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}")
    return " ".join(words)


def _norm_and_error(records: Sequence[TensorRecord]) -> tuple[float, float]:
    """Return the norm of several deltas together, and their relative error."""
    norm = math.sqrt(sum(record.norm**2 for record in records))
    error = math.sqrt(sum((record.norm * record.relative_error) ** 2 for record in records))
    return norm, error / norm if norm else 0.0
