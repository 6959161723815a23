"""The command line `dem-hub`."""

from dem_hub.cli.app import main, run

__all__ = ["main", "run"]
