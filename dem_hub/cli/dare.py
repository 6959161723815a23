"""`dem-hub dare`: vectors of which random elements are dropped, and the others scaled up."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dem_hub.cli.arguments import METHOD_GROUP, MODEL, verify_option
from dem_hub.cli.command import PATH, command, option
from dem_hub.cli.startup import heavy_imports
from dem_hub.cli.transformed import base_argument, codec_option, device_option, keep, store_option
from dem_hub.defaults import SEED


@command(
    "dare",
    examples=["dem-hub dare org/base --vector me/maths-vector --vector me/code-vector --density 0.5 -o dare"],
)
@base_argument
@option(
    "--vector",
    "vectors",
    type=PATH,
    multiple=True,
    required=True,
    group=MODEL,
    metavar="ID[@REVISION][//SUBFOLDER]",
    help="Vector or LoRA adapter. Can be repeated.",
)
@verify_option
@option("--density", type=float, default=0.5, group=METHOD_GROUP, help="Share of the elements that stays.")
@option("--seed", type=int, default=SEED, group=METHOD_GROUP, help="Decides which elements stay.")
@store_option
@codec_option
@device_option
def dare(*, base: str, vectors: Sequence[str], output: str, **options: Any) -> None:
    """Drop random elements of each vector, and scale the others up (DARE)."""
    from dem_hub.files.folders import STORE, check_new_output

    check_new_output(Path(output), STORE)

    with heavy_imports():
        from dem_hub.transformations.dare import dare as transform

    made = transform(base, vectors, **options)
    keep(output, base, made, dict.fromkeys(made, 1.0))
