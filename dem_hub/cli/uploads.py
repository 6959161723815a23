"""What the command line shows of a push before it goes, and where a dry run ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dem_hub.cli.command import option
from dem_hub.hub.foreign_text import printable
from dem_hub.hub.preview import Preview, PushStoppedError, previews

CONTENTS = "Contents"

base_model_option = option(
    "--base-model", group=CONTENTS, metavar="REPO_ID", help="Hub id of the base, if the base is a local folder."
)
include_code_option = option(
    "--include-code",
    is_flag=True,
    group=CONTENTS,
    help="For a merged model: also push the base's own code (*.py). Others run it if they trust you.",
)


@contextmanager
def shown_push(*, dry_run: bool) -> Iterator[None]:
    """Print on stderr which files a push within the block publishes. A dry run ends the block before any is sent."""

    def show(preview: Preview) -> None:
        print(printable(preview, keep="\n"), file=sys.stderr)
        if dry_run:
            raise PushStoppedError

    with suppress(PushStoppedError), previews(show):
        yield
