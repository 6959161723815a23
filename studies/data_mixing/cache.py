"""What is done is kept: a stage's result is a JSON file in the study's folder, and a stage that has one is not run again."""

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dem_hub.files.atomic import write_text

logger = logging.getLogger(__name__)


def file_of(folder: Path, label: str) -> Path:
    """Where a labelled result lies: `1/N` is no folder."""
    return folder / f"{label.replace('/', '-')}.json"


def keep(path: Path, make: Callable[[], Any]) -> Any:
    """The JSON data of a file; made first, and timed in the log, where it is not there."""
    if not path.is_file():
        start = time.monotonic()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(make()) + "\n")
        logger.info("%s: %.0f s", path.stem, time.monotonic() - start)
    return json.loads(path.read_text("utf-8"))
