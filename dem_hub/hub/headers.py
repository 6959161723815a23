"""Weights that are still on the Hub, seen from here: files with their true header and size, and a hole in place of the data.

So names, shapes and dtypes are looked at by the code that looks at any checkpoint, before anything large comes down. A hole takes no room
on the disk, and what has one says so by its `remote`: nobody may take its zeros for weights.
"""

import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from dem_hub.files.names import SAFETENSORS
from dem_hub.hub.client import HubOptions, hub_api
from dem_hub.hub.download import Remote, Resolved, download_errors, resolve, wanted_names
from dem_hub.hub.references import VectorSource

_WEIGHTS = (f"*{SAFETENSORS}",)
_FIRST = 100_001  # bytes asked for at first, in which most headers are whole
_AHEAD = 1 << 14  # bytes that a reader of single places takes at a time


def resolve_headers(
    source: VectorSource, files: Iterable[str], options: HubOptions | None = None, *, scratch: Path
) -> Resolved:
    """Find a source as [`resolve`] does, but leave weights on the Hub that are not on this machine.

    Args:
        source ([`VectorSource`]): a folder or a Hub id.
        files (`Iterable[str]`): glob patterns of what is wanted.
        options ([`HubOptions`], *optional*): how to reach the Hub.
        scratch (`Path`): where stubs may lie.

    Returns:
        [`Resolved`]: where all of it is on this machine, what [`resolve`] gives; else a folder of stubs, with `remote`.

    Raises:
        What [`resolve`] raises.
    """
    options = options or HubOptions()
    if source.is_local or options.local_files_only:
        return resolve(source, files, options)
    light = resolve(source, files, options, without=_WEIGHTS)
    pinned = replace(source, revision=light.commit)
    if _is_here(pinned, files, options):
        return replace(resolve(pinned, files, options), source=source)
    with download_errors(source):
        found = (
            hub_api()
            .model_info(source.repo_id, revision=light.commit, files_metadata=True, token=options.token)
            .siblings
            or ()
        )
    names = {
        one.rfilename: (one.size or 0, one.lfs.sha256 if one.lfs else "")
        for one in found
        if one.rfilename.endswith(SAFETENSORS)
    }
    missing = {
        name: names[name]
        for name in wanted_names(source, names, files)
        if not (light.folder / Path(name).name).is_file()
    }
    if not missing:  # nothing but pickles, perhaps, of which `resolve` tells
        return resolve(source, files, options)
    remote = Remote(pinned, options, missing)
    folder = Path(tempfile.mkdtemp(dir=scratch))
    for path in light.folder.glob("*"):
        if path.is_file():
            _link(path.resolve(), folder / path.name)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda path: _make_stub(remote, path, folder), missing))
    return Resolved(source, folder, light.commit, remote)


def _is_here(source: VectorSource, files: Iterable[str], options: HubOptions) -> bool:
    """Whether all of it, weights included, is on this machine."""
    if options.force_download:
        return False
    try:
        found = resolve(source, files, replace(options, local_files_only=True))
    except FileNotFoundError:
        return False
    return any(found.folder.glob(f"*{SAFETENSORS}"))


def _link(file: Path, link: Path) -> None:
    try:
        link.symlink_to(file)
    except OSError:  # a system that does not let everybody make links
        shutil.copyfile(file, link)


def _make_stub(remote: Remote, path: str, folder: Path) -> None:
    size = remote.files[path][0]
    start = remote.read(path, 0, min(size, _FIRST))
    length = 8 + int.from_bytes(start[:8], "little")
    if len(start) < length <= size:
        start += remote.read(path, len(start), length)
    with (folder / Path(path).name).open("wb") as file:
        file.write(start[:length])
        file.truncate(size)


@dataclass
class RemoteFile:
    """A file on the Hub, of which single places are read; what is read is kept for the next place."""

    remote: Remote
    path: str
    position: int = 0
    start: int = 0
    data: bytes = b""

    def seek(self, position: int) -> None:
        """Go to a place."""
        self.position = position

    def read(self, size: int) -> bytes:
        """Some bytes from there."""
        first = self.position - self.start
        if first < 0 or first + size > len(self.data):
            self.start, first = self.position, 0
            stop = min(self.position + max(size, _AHEAD), self.remote.files[self.path][0])
            self.data = self.remote.read(self.path, self.position, stop)
        self.position += size
        return self.data[first : first + size]
