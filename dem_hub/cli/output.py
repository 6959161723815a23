"""Texts that several commands print on stdout: tables, and a vector in one line."""

import math
from collections.abc import Sequence

from dem_hub.files.sizes import format_size
from dem_hub.hub.foreign_text import printable
from dem_hub.vectors.config import TensorRecord, VectorConfig


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns under their heads, without control characters of others.

    The first column is aligned to the left, the others to the right.
    """
    lines = [[printable(cell) for cell in line] for line in (head, *rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        for cell, width in zip(line[1:], widths[1:], strict=True):
            cells.append(cell.rjust(width))
        texts.append("  ".join(cells))
    return "\n".join(texts)


def summary(config: VectorConfig, nbytes: int) -> str:
    """Return a vector in one line: codec, number of tensors, size, norm and relative error."""
    norm, error = norm_and_error(list(config.tensors.values()))
    codec = " ".join([config.codec, *(f"{name}={value}" for name, value in config.codec_options.items())])
    tensors = f"{len(config.tensors)} tensors changed"
    return f"{codec}, {tensors}, {format_size(nbytes)}, norm {norm:.4g}, relative error {error:.3g}"


def norm_and_error(records: Sequence[TensorRecord]) -> tuple[float, float]:
    """Return the norm of several deltas together, and their relative error."""
    norm = math.sqrt(sum(record.norm**2 for record in records))
    error = math.sqrt(sum((record.norm * record.relative_error) ** 2 for record in records))
    return norm, error / norm if norm else 0.0
