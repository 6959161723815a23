"""Files beside a vector that say more of it: how it was trained, and a picture. They are no part of what it is, or of its sha256."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dem_hub.files.atomic import write_text
from dem_hub.files.names import SIDECARS, TRAINING_FACTS
from dem_hub.files.strict_json import as_mapping, dump_json, parse_json


def write_training(folder: Path, training: Mapping[str, Any], libraries: Mapping[str, str]) -> None:
    """Write what an adapter was trained on, beside it."""
    data = {"training": dict(training), "libraries": dict(libraries)}
    write_text(folder / TRAINING_FACTS, dump_json(data))


def read_training(folder: Path) -> dict[str, Any]:
    """What an adapter was trained on, where that is known."""
    path = folder / TRAINING_FACTS
    if not path.is_file():
        return {}
    return as_mapping(parse_json(path.read_bytes(), str(path)).get("training", {}), f"{path}: training")


def companions_of(folder: Path) -> dict[str, Path]:
    """The companions that a folder has, by name."""
    return {name: folder / name for name in SIDECARS if (folder / name).is_file()}
