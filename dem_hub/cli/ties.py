"""`dem-hub ties`: vectors whose weighted sum is the TIES merge of others."""

from collections.abc import Sequence
from pathlib import Path

from dem_hub.cli.arguments import METHOD_GROUP, MODEL, number, verify_option
from dem_hub.cli.command import command, option
from dem_hub.cli.startup import heavy_imports
from dem_hub.cli.transformed import base_argument, codec_option, device_option, keep, store_option


@command(
    "ties",
    examples=["dem-hub ties org/base --vector me/maths-vector=1 --vector me/code-vector=0.5 --density 0.2 -o ties"],
)
@base_argument
@option(
    "--vector",
    "vectors",
    multiple=True,
    required=True,
    group=MODEL,
    metavar="ID[@REVISION][//SUBFOLDER]=WEIGHT",
    help="Vector or LoRA adapter, and its weight. Can be repeated.",
)
@verify_option
@option("--density", type=float, default=0.2, group=METHOD_GROUP, help="Share of each tensor's elements that is kept.")
@option(
    "--normalize/--no-normalize",
    default=True,
    group=METHOD_GROUP,
    help="Divide the sum by the weights of the vectors that agree.",
)
@store_option
@codec_option
@device_option
def ties(
    *,
    base: str,
    vectors: Sequence[str],
    density: float,
    normalize: bool,
    output: str,
    codec: str,
    device: str | None,
) -> None:
    """Keep the largest elements of each vector, and of these the ones whose sign most vectors agree on (TIES)."""
    from dem_hub.cli.arguments import split_pairs
    from dem_hub.files.folders import STORE, check_new_output

    check_new_output(Path(output), STORE)
    pairs = split_pairs(vectors, "--vector", "maths-vector=1")
    weights = {name: number(text, f"weight of '{name}'") for name, text in pairs.items()}

    with heavy_imports():
        from dem_hub.transformations.ties import ties as transform

    made = transform(base, weights, density=density, normalize=normalize, codec=codec, device=device)
    keep(output, base, made, weights)
