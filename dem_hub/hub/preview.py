"""What a push will publish, told before anything is sent.

Each kind of push makes the list of its files before its first request that writes, and announces the list here. The
command line shows it, and ends the push there for a dry run. From Python nobody listens, unless the caller does:

    with previews(print):
        vector.push_to_hub("me/maths-vector")
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from dem_hub.files.links import check_link
from dem_hub.files.sizes import format_size
from dem_hub.hub.foreign_text import printable


class PushStoppedError(Exception):
    """Raised by who listens to previews, to end a push before anything is sent. No error of the push itself."""


@dataclass(frozen=True)
class Preview:
    """A push that is about to begin: the repository, and the size of each file in bytes by its path there.

    The card is not among the files. It is written anew from the README that the repository has. `is_space` says that
    the repository is a Space, which runs what is pushed.
    """

    repo_id: str
    sizes: Mapping[str, int]
    is_space: bool = False

    def __str__(self) -> str:
        total = format_size(sum(self.sizes.values()))
        place = f"the Space '{self.repo_id}'" if self.is_space else f"'{self.repo_id}'"
        lines = [f"{len(self.sizes)} files ({total}) and a card go to {place}:"]
        for path, size in sorted(self.sizes.items()):
            lines.append(f"  {printable(path)}  {format_size(size)}")
        return "\n".join(lines)


Listener = Callable[[Preview], None]

_listener: ContextVar[Listener | None] = ContextVar("_listener", default=None)


@contextmanager
def previews(listener: Listener) -> Iterator[None]:
    """Call a function with the [`Preview`] of each push that begins within the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def announce(repo_id: str, files: Mapping[str, Path | str | int], *, is_space: bool = False) -> None:
    """Tell who listens what a push will publish, and refuse files that are links out of their folders.

    Args:
        repo_id (`str`): The repository.
        files (`Mapping[str, Path | str | int]`): A file, a text, or the size in bytes of a file that is made later,
            by its path in the repository.
        is_space (`bool`, *optional*, defaults to `False`): The repository is a Space.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a file is a link that leads out of the folder in which it lies.
    """
    sizes = {}
    for path, content in files.items():
        if isinstance(content, Path):
            check_link(content)
            sizes[path] = content.stat().st_size
        elif isinstance(content, str):
            sizes[path] = len(content.encode())
        else:
            sizes[path] = content
    listener = _listener.get()
    if listener is not None:
        listener(Preview(repo_id, sizes, is_space))
