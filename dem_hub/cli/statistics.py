"""`dem-hub statistics`: input statistics beside vectors, which RegMean takes in place of data."""

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
    split_pairs,
)
from dem_hub.cli.command import command, option
from dem_hub.cli.startup import heavy_imports
from dem_hub.cli.transformed import base_argument
from dem_hub.defaults import SEARCH_DTYPE
from dem_hub.errors import ConfigError


@command("statistics", examples=["dem-hub statistics org/base --vector vectors/maths=maths.jsonl"])
@base_argument
@option(
    "--vector",
    "vectors",
    multiple=True,
    required=True,
    group=DATA,
    metavar="FOLDER=DATA",
    help="Folder of a vector or LoRA adapter, and data of its distribution, as in dem-hub search. Can be repeated.",
)
@columns_option
@max_length_option
@batch_size_option
@option("--dtype", default=SEARCH_DTYPE, group=MODEL, help="Dtype of the model that runs over the data.")
def statistics(*, base: str, vectors: Sequence[str], columns: Sequence[str], **options: Any) -> None:
    """Gather what the inputs of each layer look like, beside the vectors, for dem-hub regmean.

    They hold no text, but its subjects can be guessed from them. A push publishes them only with --include-statistics.
    """
    data = split_pairs(vectors, "--vector", "maths-vector=maths.jsonl")
    missing = [f"'{name}'" for name in data if not Path(name).is_dir()]
    if missing:
        raise ConfigError(f"No folder is at {', '.join(missing)}; statistics are written into a vector's own folder.")
    names = split_columns(columns)

    with heavy_imports():
        from dem_hub.transformations.own_data import gather_statistics

    for name, gathered in gather_statistics(base, data, columns=names, **options).items():
        gathered.save_pretrained(name)
        print(f"{name}: {gathered.tokens} tokens, {len(gathered.inputs)} inputs")
