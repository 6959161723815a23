"""`dem-hub export`: the weighted sum of vectors as one LoRA adapter, in the format of PEFT, llama.cpp or MLX."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dem_hub.cli.arguments import OUTPUT, overwrite_option, verify_option
from dem_hub.cli.command import PATH, command, option
from dem_hub.cli.opening import model_argument, open_named, vector_option
from dem_hub.cli.startup import heavy_imports
from dem_hub.errors import ConfigError
from dem_hub.hub.foreign_text import printable

if TYPE_CHECKING:
    from dem_hub.merging.opened_recipe import OpenedRecipe
    from dem_hub.models.lora_export import ExportedAdapter

# Names of tensors in the note on what was left out.
_SHOWN = 3


@command(
    "export",
    examples=[
        "dem-hub export me/my-dem -o adapter",
        "dem-hub export org/base --vector me/maths-vector=0.4 -o adapter --rank 64",
        "dem-hub export me/my-dem --gguf -o my-dem.gguf",
    ],
)
@model_argument
@vector_option
@verify_option
@option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    group=OUTPUT,
    metavar="PATH",
    help="Folder for the adapter; with --gguf a file, with --scales a folder of files.",
)
@overwrite_option
@option("--peft", is_flag=True, group=OUTPUT, help="Write a PEFT adapter, which vLLM reads, too. This is the default.")
@option("--gguf", is_flag=True, group=OUTPUT, help="Write a GGUF adapter, for llama.cpp and Ollama.")
@option("--mlx", is_flag=True, group=OUTPUT, help="Write an adapter for mlx-lm.")
@option(
    "--scales",
    is_flag=True,
    group=OUTPUT,
    help="Write a GGUF adapter for each vector, and print the coefficients as llama.cpp takes them.",
)
@option("--rank", type=int, group=OUTPUT, help="Maximum LoRA rank. Default: exact, which requires low-rank vectors.")
@option(
    "--rank-pattern",
    is_flag=True,
    group=OUTPUT,
    help="Let each module have the rank it needs: fewer bytes, in a PEFT adapter alone.",
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
    peft: bool,
    gguf: bool,
    mlx: bool,
    scales: bool,
    rank: int | None,
    rank_pattern: bool,
    dtype: str | None,
) -> None:
    """Export the weighted sum of vectors as one LoRA adapter."""
    given = {"--peft": peft, "--gguf": gguf and not scales, "--mlx": mlx, "--scales": scales}
    _check_format([name for name, is_given in given.items() if is_given], rank_pattern=rank_pattern)
    with heavy_imports():
        from dem_hub.models.lora_export import export_adapter

    opened = open_named(model, vectors)
    if scales:
        _export_scales(opened, Path(output), overwrite=overwrite, rank=rank, dtype=dtype)
        return
    if gguf or mlx:
        adapter = _export_other(opened, Path(output), is_gguf=gguf, overwrite=overwrite, rank=rank, dtype=dtype)
    else:
        _check_folder(opened, Path(output), overwrite=overwrite)
        adapter = export_adapter(opened, Path(output), rank=rank, dtype=dtype, rank_pattern=rank_pattern)
    _tell(output, adapter)


def _check_format(formats: Sequence[str], *, rank_pattern: bool) -> None:
    """Refuse options that ask for several formats at a time."""
    if len(formats) > 1:
        raise ConfigError(f"{' and '.join(formats)} are different formats. Export once for each, into another place.")
    if rank_pattern and formats not in ([], ["--peft"]):
        raise ConfigError(
            f"--rank-pattern is for PEFT adapters; with {formats[0]} all modules have one rank. Leave it out."
        )


def _check_folder(opened: "OpenedRecipe", target: Path, *, overwrite: bool) -> None:
    """Refuse a folder that is an input, or that holds anything but an adapter that may be replaced."""
    from dem_hub.files.folders import ADAPTER, check_output

    opened.check_target(target, ADAPTER)
    check_output(target, ADAPTER, overwrite=overwrite)


def _export_other(
    opened: "OpenedRecipe", target: Path, *, is_gguf: bool, overwrite: bool, rank: int | None, dtype: str | None
) -> "ExportedAdapter":
    """Write the sum for llama.cpp or mlx-lm, by way of a temporary PEFT adapter."""
    from dem_hub.files.folders import check_output_file
    from dem_hub.files.scratch import scratch_folder
    from dem_hub.models.lora_export import export_adapter
    from dem_hub.serving.gguf_adapter import check_gguf, write_gguf
    from dem_hub.serving.mlx_adapter import check_mlx, write_mlx

    if is_gguf:
        check_gguf(opened.base)
        check_output_file(target, overwrite=overwrite)
    else:
        check_mlx(opened.base)
        _check_folder(opened, target, overwrite=overwrite)
    with scratch_folder() as folder:
        adapter = export_adapter(opened, folder / "adapter", rank=rank, dtype=dtype)
        write = write_gguf if is_gguf else write_mlx
        write(folder / "adapter", opened.base, target)
    return adapter


def _export_scales(
    opened: "OpenedRecipe", target: Path, *, overwrite: bool, rank: int | None, dtype: str | None
) -> None:
    """Write an adapter for each vector, and print the coefficients for llama.cpp."""
    from dem_hub.files.folders import check_output_file
    from dem_hub.serving.gguf_adapter import check_gguf
    from dem_hub.serving.scales import alone, scales_of

    check_gguf(opened.base)
    found = scales_of(opened, target)
    arguments = found.arguments
    for path, _ in found.scales:
        check_output_file(path, overwrite=overwrite)
    target.mkdir(parents=True, exist_ok=True)
    for place, (path, _) in enumerate(found.scales):
        one = alone(opened, place)
        _tell(str(path), _export_other(one, path, is_gguf=True, overwrite=overwrite, rank=rank, dtype=dtype))
    print(arguments)
    print(found.request)


def _tell(output: str, adapter: "ExportedAdapter") -> None:
    """Print what was written, and what is not in it."""
    ranks = " to ".join(map(str, sorted({min(adapter.ranks), max(adapter.ranks)})))
    print(f"{output}: rank {ranks}, relative error {adapter.error:.3g}, {adapter.dtype}")
    if adapter.left_out:
        names = ", ".join(adapter.left_out[:_SHOWN])
        if len(adapter.left_out) > _SHOWN:
            names += " ..."
        print(printable(f"left out, as no LoRA can change them: {len(adapter.left_out)} tensors ({names})"))
