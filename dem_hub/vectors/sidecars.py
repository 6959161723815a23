"""Sidecar files of a vector: training facts and a plot. They are not part of its identity or its sha256.

Input statistics are sidecars too, and have a module of their own (`statistics_beside`).

PEFT's `adapter_config.json` has no place for training facts, so those of an adapter are kept in a file beside it. A
vector that dem_hub extracted has them in its own config.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dem_hub.files.atomic import write_text
from dem_hub.files.names import NORMS_PLOT, TRAINING_FACTS
from dem_hub.files.strict_json import as_mapping, dump_json, read_json


def write_training(folder: Path, training: Mapping[str, Any], libraries: Mapping[str, str]) -> None:
    """Write the training facts of an adapter beside it.

    Args:
        folder (`Path`): Folder of the adapter.
        training (`Mapping[str, Any]`): Facts of the run, see [`training_facts`].
        libraries (`Mapping[str, str]`): Versions of the libraries, by name.
    """
    data = {"training": dict(training), "libraries": dict(libraries)}
    write_text(folder / TRAINING_FACTS, dump_json(data, foreign=True))


def read_training(folder: Path) -> dict[str, Any]:
    """Return the training facts beside an adapter, or an empty dict if there are none."""
    path = folder / TRAINING_FACTS
    if not path.is_file():
        return {}
    return as_mapping(read_json(path).get("training", {}), f"{path}: training")


def sidecars_of(folder: Path) -> dict[str, Path]:
    """Return the plot and the training facts that a vector's folder has, by name."""
    return {name: folder / name for name in (NORMS_PLOT, TRAINING_FACTS) if (folder / name).is_file()}
