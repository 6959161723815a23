"""`dem-hub regmean`: vectors that need no coefficients, from vectors and a little data of each distribution."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dem_hub.cli.arguments import (
    DATA,
    MODEL,
    batch_size_option,
    columns_option,
    max_length_option,
    split_columns,
    verify_option,
)
from dem_hub.cli.command import command, option
from dem_hub.cli.startup import heavy_imports
from dem_hub.cli.transformed import base_argument, codec_option, device_option, keep, store_option
from dem_hub.defaults import SEARCH_DTYPE
from dem_hub.errors import ConfigError


@command(
    "regmean",
    examples=[
        "dem-hub regmean org/base --vector me/maths-vector=maths.jsonl --vector me/code-vector=code.jsonl -o regmean",
    ],
)
@base_argument
@option(
    "--vector",
    "vectors",
    multiple=True,
    required=True,
    group=DATA,
    metavar="ID[=DATA]",
    help="Vector or LoRA adapter, and data of its distribution, as in dem-hub search; no data if it has input "
    "statistics beside it. Can be repeated.",
)
@columns_option
@max_length_option
@batch_size_option
@option("--dtype", default=SEARCH_DTYPE, group=MODEL, help="Dtype of the model that runs over the data.")
@verify_option
@store_option
@codec_option
@device_option
def regmean(*, base: str, vectors: Sequence[str], columns: Sequence[str], output: str, **options: Any) -> None:
    """Give each vector the input directions of its own distribution (RegMean), so that all coefficients are 1.

    Each fine-tune runs once over its own data. A few thousand tokens of each are enough.
    """
    from dem_hub.files.folders import STORE, check_new_output

    check_new_output(Path(output), STORE)
    data = _data_of(vectors)
    names = split_columns(columns)

    with heavy_imports():
        from dem_hub.transformations.regmean import regmean as transform

    made = transform(base, data, columns=names, **options)
    keep(output, base, made, dict.fromkeys(made, 1.0))


def _data_of(texts: Sequence[str]) -> dict[str, str | None]:
    """Return the data of each vector, from `ID=DATA` or `ID`.

    Raises:
        `ConfigError`: a vector is named twice.
    """
    data: dict[str, str | None] = {}
    for text in texts:
        name, separator, rows = text.rpartition("=")
        if not separator:
            name, rows = text, ""
        if name in data:
            raise ConfigError(f"--vector has '{name}' named twice. Name each once.")
        data[name] = rows or None
    return data
