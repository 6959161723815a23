"""`dem-hub demo`: the whole pipeline on a small real model."""

import logging
from pathlib import Path

from dem_hub.cli.arguments import OUTPUT
from dem_hub.cli.command import PATH, command, option
from dem_hub.hub.report import wrapped


class Wrapping(logging.Formatter):
    """Messages alone, with lines that end between words."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message."""
        return wrapped(super().format(record))


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
    already is not made again. It runs offline, and needs the extra demo and a package with the model: without them it
    says what to install.
    """
    from dem_hub.demo.run import run_demo

    # Other libraries warn of what they do without; nothing of it matters here, and it looks as if something was wrong.
    handler = logging.StreamHandler()
    handler.setFormatter(Wrapping())
    logging.basicConfig(handlers=[handler], level=logging.ERROR)
    logging.getLogger("dem_hub").setLevel(logging.INFO)
    print(run_demo(Path(output)))
