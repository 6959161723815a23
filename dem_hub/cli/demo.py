"""`dem-hub demo`: the whole pipeline on a small real model."""

import logging
import sys
from pathlib import Path

from dem_hub.cli.arguments import OUTPUT
from dem_hub.cli.command import PATH, command, option


@command("demo", examples=["dem-hub demo", "dem-hub demo -o /tmp/demo"])
@option(
    "-o",
    "--output",
    type=PATH,
    default="dem-hub-demo",
    group=OUTPUT,
    metavar="FOLDER",
    help="Folder for everything it makes.",
)
def demo(*, output: str) -> None:
    """Run the whole pipeline on SmolLM2-135M (about 8 minutes on two CPU cores).

    Three fine-tunes, their vectors, the search for coefficients, and a table of perplexities. What is in the folder
    already is not made again.
    """
    from dem_hub.demo.run import run_demo

    # Other libraries warn of what they do without; nothing of it matters here, and it looks as if something was wrong.
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.ERROR)
    logging.getLogger("dem_hub").setLevel(logging.INFO)
    print(run_demo(Path(output)))
