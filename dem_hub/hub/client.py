"""The one client of the Hub, and the options with which it is called."""

import os
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from dem_hub._version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class HubOptions:
    """Settings to reach the Hub, with the names and meanings of `huggingface_hub`."""

    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """Return the options for pickling, without the token: a pickled model may be given to somebody else."""
        return {**vars(self), "token": None}

    def __deepcopy__(self, memo: object) -> "HubOptions":
        """Return the same object, with its token: unlike a pickle, a deep copy stays in this process."""
        return self


@cache
def hub_api() -> "HfApi":
    """Return the one client, whose requests name dem_hub and its version."""
    from huggingface_hub import HfApi

    return HfApi(library_name="dem-hub", library_version=__version__)
