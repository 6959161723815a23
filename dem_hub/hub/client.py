"""The one client of the Hub, and how it is to be reached."""

import os
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from dem_hub._version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class HubOptions:
    """How to reach the Hub, with the ecosystem's names."""

    token: str | bool | None = field(default=None, repr=False)
    cache_dir: str | os.PathLike[str] | None = None
    local_files_only: bool = False
    force_download: bool = False

    def __getstate__(self) -> dict[str, Any]:
        """A model that is pickled takes its options along, and never the token."""
        return {**vars(self), "token": None}

    def __deepcopy__(self, memo: object) -> "HubOptions":
        """A copy of a model in this process keeps the token."""
        return self


@cache
def hub_api() -> "HfApi":
    """The one client, which tells the Hub who we are."""
    from huggingface_hub import HfApi

    return HfApi(library_name="dem-hub", library_version=__version__)
