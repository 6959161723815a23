"""References to things on the Hub or on this machine: a vector, a base or a recipe, at one revision.

A reference is only a name. [`dem_hub.hub.download.resolve`] finds what it names.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from dem_hub.errors import ConfigError
from dem_hub.files.foreign_names import check_inside

COMMIT = re.compile(r"[0-9a-f]{40}")
REPO_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")

# Hex digits of a commit in messages, as git abbreviates them in large repositories.
_SHORT_COMMIT = 12


def short_commit(commit: str) -> str:
    """Return the first 12 hex digits of a commit, for a message."""
    return commit[:_SHORT_COMMIT]


class HubId(str):
    """The id of a repository where only a repository can be meant, whatever folders this machine has.

    A recipe or a vector that came from the Hub, or that names a commit, has such ids: a folder `org/base` in the
    working directory must not take the place of the repository `org/base`.
    """

    __slots__ = ()


@dataclass(frozen=True)
class VectorSource:
    """A reference to a vector, a base or a recipe: a Hub id or a folder, at one revision, in one subfolder.

    Example:

    ```python
    >>> from dem_hub import VectorSource
    >>> str(VectorSource("me/vectors", revision="v2", subfolder="maths"))
    'me/vectors@v2//maths'
    >>> VectorSource.parse("me/vectors@v2//maths").subfolder
    'maths'

    ```
    """

    repo_id: str
    revision: str | None = None
    subfolder: str = ""

    def __post_init__(self) -> None:
        """Refuse a subfolder that leaves the repository."""
        check_inside(self.subfolder, f"subfolder of '{self.repo_id}'")

    def __str__(self) -> str:
        name = self.repo_id
        if self.revision:
            name += f"@{self.revision}"
        if self.subfolder:
            name += f"//{self.subfolder}"
        return name

    @classmethod
    def parse(
        cls, text: "str | os.PathLike[str] | VectorSource", *, revision: str | None = None, subfolder: str = ""
    ) -> "VectorSource":
        """Read `ID[@REVISION][//SUBFOLDER]`.

        An existing folder is taken as it is, even if its name has `@` or `//` in it.

        Args:
            text (`str`, `os.PathLike` or [`VectorSource`]): The text to read. A `VectorSource` is returned as it is.
            revision (`str`, *optional*): Revision to use in place of the one in `text`.
            subfolder (`str`, *optional*): Subfolder to use in place of the one in `text`.
        """
        source = text if isinstance(text, VectorSource) else cls._read(os.fspath(text))
        return replace(source, revision=revision or source.revision, subfolder=subfolder or source.subfolder)

    @classmethod
    def _read(cls, name: str) -> "VectorSource":
        if Path(name).is_dir():
            return cls(name)
        name, _, subfolder = name.partition("//")
        repo_id, _, revision = name.partition("@")
        return cls(repo_id, revision or None, subfolder)

    @property
    def is_local(self) -> bool:
        """True if this is a folder of this machine, and not a repository of the Hub."""
        if isinstance(self.repo_id, HubId):
            return False
        return bool(self.repo_id) and Path(self.repo_id).is_dir()

    @property
    def absolute(self) -> "VectorSource":
        """The same reference, with the absolute path of a folder: a relative one may look like a Hub id."""
        if not self.is_local:
            return self
        return replace(self, repo_id=str(Path(self.repo_id).resolve()))

    @property
    def is_repository(self) -> bool:
        """True if this can be a repository of the Hub: no folder of this machine, nor the path of one that is gone."""
        return REPO_ID.fullmatch(self.repo_id) is not None and not self.is_local


@dataclass(frozen=True)
class BaseRecord:
    """The base that a vector was extracted from, or that a recipe is built on, as their configs name it.

    `repo_id` is a Hub id or the path of a folder (`None` if an adapter does not name its base), `commit` has 40 hex
    digits, and `fingerprint` is that of [`dem_hub.checkpoints.fingerprint`].
    """

    repo_id: str | None
    commit: str | None = None
    subfolder: str = ""
    fingerprint: str | None = None

    def __post_init__(self) -> None:
        """Refuse an abbreviated commit, and a subfolder that leaves the repository."""
        check_inside(self.subfolder, f"subfolder of base '{self.repo_id}'")
        if self.commit is not None and not COMMIT.fullmatch(self.commit):
            raise ConfigError(
                f"Base '{self.repo_id}' has commit '{self.commit}', which is not 40 hex digits. Pin the full commit."
            )
        if self.commit is not None and self.repo_id is not None:
            object.__setattr__(self, "repo_id", HubId(self.repo_id))  # no folder has a commit

    @property
    def on_hub(self) -> "BaseRecord":
        """The same record, whose name can only be that of a repository."""
        if self.repo_id is None:
            return self
        return replace(self, repo_id=HubId(self.repo_id))

    def __str__(self) -> str:
        name = self.repo_id or "unknown base"
        if self.commit:
            name += f"@{short_commit(self.commit)}"
        if self.subfolder:
            name += f"//{self.subfolder}"
        return name

    @property
    def source(self) -> VectorSource:
        """The base as a reference that can be opened.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If the base is not recorded.
        """
        if self.repo_id is None:
            raise ConfigError("The base is not recorded here. Name it yourself.")
        return VectorSource(self.repo_id, self.commit, self.subfolder)
