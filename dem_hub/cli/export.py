"""`dem-hub export`: the weighted sum of vectors as one PEFT LoRA adapter."""

from collections.abc import Sequence
from pathlib import Path

from dem_hub.cli.arguments import OUTPUT, overwrite_option, verify_option
from dem_hub.cli.command import PATH, command, option
from dem_hub.cli.opening import model_argument, open_named, vector_option
from dem_hub.cli.startup import heavy_imports
from dem_hub.hub.foreign_text import printable

# Names of tensors in the note on what was left out.
_SHOWN = 3


@command(
    "export",
    examples=[
        "dem-hub export me/my-dem -o adapter",
        "dem-hub export org/base --vector me/maths-vector=0.4 -o adapter --rank 64",
    ],
)
@model_argument
@vector_option
@verify_option
@option("-o", "--output", type=PATH, required=True, group=OUTPUT, metavar="FOLDER", help="Folder for the adapter.")
@overwrite_option
@option(
    "--peft",
    is_flag=True,
    default=True,
    show_default=False,
    expose_value=False,
    group=OUTPUT,
    help="Write a PEFT adapter. This is the default, and the only format.",
)
@option("--rank", type=int, group=OUTPUT, help="Maximum LoRA rank. Default: exact, which requires low-rank vectors.")
@option(
    "--rank-pattern",
    is_flag=True,
    group=OUTPUT,
    help="Let each module have the rank it needs: fewer bytes, but llama.cpp scales it wrongly.",
)
@option(
    "--dtype", group=OUTPUT, help="float32, float16 or bfloat16. Default: that of the vectors' factors, or float32."
)
def export(
    *,
    model: str,
    vectors: Sequence[str],
    output: str,
    overwrite: bool,
    rank: int | None,
    rank_pattern: bool,
    dtype: str | None,
) -> None:
    """Export the weighted sum of vectors as one PEFT LoRA adapter."""
    with heavy_imports():
        from dem_hub.files.folders import ADAPTER, check_output
        from dem_hub.models.lora_export import export_adapter

    opened = open_named(model, vectors)
    opened.check_target(Path(output), ADAPTER)
    check_output(Path(output), ADAPTER, overwrite=overwrite)
    adapter = export_adapter(opened, Path(output), rank=rank, dtype=dtype, rank_pattern=rank_pattern)
    ranks = f"{min(adapter.ranks)} to {max(adapter.ranks)}"
    print(f"{output}: rank {ranks}, relative error {adapter.error:.3g}, {adapter.dtype}")
    if adapter.left_out:
        names = ", ".join(adapter.left_out[:_SHOWN])
        if len(adapter.left_out) > _SHOWN:
            names += " ..."
        print(printable(f"left out, as no LoRA can change them: {len(adapter.left_out)} tensors ({names})"))
