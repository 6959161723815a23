"""`dem-hub mix`: a page on which vectors are mixed by sliders."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dem_hub.cli.arguments import (
    MODEL,
    OUTPUT,
    batch_size_option,
    columns_option,
    data_option,
    device_map_option,
    max_length_option,
    number,
    split_columns,
    split_pairs,
    verify_option,
)
from dem_hub.cli.command import PATH, argument, command, option
from dem_hub.cli.opening import vector_option
from dem_hub.hub.foreign_text import printable

PAGE = "Page"


@command(
    "mix",
    examples=[
        "dem-hub mix my-dem --data maths=maths.jsonl --data code=code.jsonl",
        "dem-hub mix me/my-dem",
        "dem-hub mix org/base --vector me/maths-vector=0.5 --vector other/chat-lora=0.5",
    ],
)
@argument("model", type=PATH, help="Folder of a search, Hub id or folder of a recipe, or of a base with --vector.")
@vector_option
@data_option(help="Data to measure mixtures on, in the same forms as for dem-hub search. Can be repeated.")
@columns_option
@max_length_option
@batch_size_option
@option(
    "--compare",
    type=PATH,
    group=MODEL,
    metavar="RECIPE_OR_MODEL",
    help="Second model to compare with: Hub id or folder. It takes memory of its own. Default: none; the page compares "
    "with the base.",
)
@option("--dtype", default="auto", group=MODEL, help="Dtype of the model; auto is the recipe's own.")
@device_map_option
@verify_option
@option(
    "-o",
    "--output",
    type=PATH,
    default="mixtures",
    group=OUTPUT,
    metavar="FOLDER",
    help="Folder for the recipes that are saved on the page, each in a folder of its own.",
)
@option(
    "--host",
    default="127.0.0.1",
    group=PAGE,
    metavar="ADDRESS",
    help="Address to listen on. Where others can reach it, the page cannot add, save or push.",
)
@option("--port", type=int, group=PAGE, help="Port to listen on. Default: the first free one from 7860.")
def mix(
    *,
    model: str,
    vectors: Sequence[str],
    data: Sequence[str],
    columns: Sequence[str],
    max_length: int,
    batch_size: int,
    compare: str | None,
    dtype: str,
    device_map: str | None,
    output: str,
    host: str,
    port: int | None,
) -> None:
    """Mix vectors by sliders on a page in the browser, and read what the mixture says.

    The page shows the loss to expect at once if the folder is that of a search, and the exact loss on --data after a
    merge.
    """
    from dem_hub.mixer.page import launch, require_gradio

    require_gradio()  # before the model is loaded
    print(
        printable(
            f"Opening the mixer of {model}: first the model is loaded, and then the page opens. Its address follows."
        ),
        file=sys.stderr,
    )
    from dem_hub.evaluation.columns import select_columns
    from dem_hub.hub.references import VectorSource
    from dem_hub.mixer.opening import Measuring, open_mixer
    from dem_hub.mixer.other_model import FoundModel

    datasets = select_columns(split_pairs(data, "--data", "maths=maths.jsonl"), split_columns(columns))
    coefficients = {}
    for name, text in split_pairs(vectors, "--vector", "maths-vector=0.5").items():
        coefficients[name] = number(text, f"coefficient of '{name}'")
    found = None
    if compare is not None:
        found = FoundModel.of(VectorSource.parse(compare))
        print(printable(f"The model to compare with takes {found.cost}."), file=sys.stderr)
    mixer = open_mixer(
        model,
        coefficients or None,
        measuring=Measuring(datasets, max_length, batch_size),
        output=Path(output),
        dtype=dtype,
        device_map=device_map,
    )
    if found is not None:
        mixer.load_other(found)
    page = launch(mixer, host, port)
    print(f"The mixer is at {page.local_url} until Ctrl-C.", flush=True)
    try:
        while True:
            time.sleep(3600)
    finally:
        page.close(verbose=False)
