"""Pictures as files in a folder: PNG for every program, SVG for large prints."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dem_hub.plotting.picture import Picture


def save_all(pictures: "Mapping[str, Picture]", folder: Path) -> list[Path]:
    """Write pictures into a folder, each as PNG and as SVG, and return the files.

    Args:
        pictures (`Mapping[str, Picture]`): The pictures by the names of their files, without an ending.
        folder (`Path`): The folder; it is created if it does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, picture in pictures.items():
        for path in picture_files(folder, [name]):
            picture.savefig(path)
            paths.append(path)
    return paths


def picture_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the files that [`save_all`] writes of pictures with these names."""
    return [folder / f"{name}.{ending}" for name in names for ending in ("png", "svg")]
