"""The options of commands that draw, and the checks before their work begins."""

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import click

from dem_hub.cli.arguments import OUTPUT
from dem_hub.cli.command import PATH, option
from dem_hub.defaults import THEME, Theme
from dem_hub.errors import ConfigError

plot_option = option(
    "--plot",
    type=PATH,
    group=OUTPUT,
    metavar="FOLDER",
    help="Draw pictures into this folder, as PNG and as SVG (extra plot).",
)
theme_option = option(
    "--theme",
    type=click.Choice(get_args(Theme)),
    default=THEME,
    group=OUTPUT,
    help="Colors of the pictures, for light or dark surroundings.",
)


def check_pictures(folder: str, names: Sequence[str], *, overwrite: bool) -> None:
    """Refuse pictures that cannot be drawn, before the hours of work whose result they show.

    Args:
        folder (`str`): The folder of `--plot`.
        names (`Sequence[str]`): The names of the pictures.
        overwrite (`bool`): Whether pictures of these names are replaced.

    Raises:
        `MissingDependencyError`: matplotlib is not installed.
        `ConfigError`: The folder is a file, or has such a picture.
    """
    from dem_hub.files.folders import check_output_file
    from dem_hub.plotting import picture_files, require_matplotlib

    require_matplotlib()
    if Path(folder).is_file() or Path(folder).suffix in (".png", ".svg"):
        raise ConfigError(f"--plot '{folder}' is a file, and several pictures are drawn. Give it a folder.")
    for path in picture_files(Path(folder), names):
        check_output_file(path, overwrite=overwrite)
