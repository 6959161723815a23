"""Sparse stand-ins for safetensors files that have not been downloaded: the real header and size, but no data.

Names, shapes and dtypes can so be checked with the ordinary reader before anything large is downloaded. A sparse
file takes no room on the disk for what was not written. [`Resolved.remote`] says that a folder has stand-ins, and so
does an empty file there: the reader of checkpoints never returns the zeros in them as weights.
"""

import shutil
import tempfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

from dem_hub.errors import HubError
from dem_hub.files.folders import is_recipe
from dem_hub.files.names import HEADERS_ONLY, SAFETENSORS
from dem_hub.files.shown import shown
from dem_hub.hub.client import HubOptions, hub_api
from dem_hub.hub.download import Resolved, resolve, wanted_names
from dem_hub.hub.failures import download_errors
from dem_hub.hub.references import VectorSource
from dem_hub.hub.remote import RemoteFile, RemoteWeights, in_time

_WEIGHTS = (f"*{SAFETENSORS}",)
# Bytes that are asked for first, as the Hub's client does: 97 % of the headers of the 1,000 most used models fit,
# and take one request (huggingface/huggingface_hub#1855).
_FIRST = 100_001
# A safetensors file begins with the length of its header, an integer of so many bytes.
_LENGTH = 8
# Bytes of a file of weights, exclusive: a petabyte. The Hub takes files of up to 500 GB.
_LARGEST_FILE = 1 << 50
# Bytes of a file that the Hub takes into git itself, and not into LFS, at most.
_LARGEST_IN_GIT = 10 * 1024**2


def resolve_headers(
    source: VectorSource, files: Iterable[str], options: HubOptions | None = None, *, scratch: Path
) -> Resolved:
    """Find a source as [`resolve`] does, but download only the headers of weights that are not on this machine.

    Args:
        source ([`VectorSource`]): A folder or a Hub id.
        files (`Iterable[str]`): Glob patterns of the files that are wanted.
        options ([`HubOptions`], *optional*): How to reach the Hub.
        scratch (`Path`): A folder in which the folder of stand-ins is made.

    Returns:
        [`Resolved`]: The result of [`resolve`] if everything is on this machine; else a folder of stand-ins and
        small files, with `remote`.

    Raises:
        The errors of [`resolve`].
    """
    options = options or HubOptions()
    if source.is_local or options.local_files_only:
        return resolve(source, files, options)
    small_files = resolve(source, files, options, without=_WEIGHTS)
    if is_recipe(small_files.folder):  # it has no weights of its own
        return small_files
    pinned = replace(source, revision=small_files.commit)
    if _is_on_this_machine(pinned, files, options):
        return replace(resolve(pinned, files, options), source=source)
    on_hub = _weights_on_hub(pinned, options)
    missing = {
        path: on_hub[path]
        for path in wanted_names(source, on_hub, files)
        if not (small_files.folder / Path(path).name).is_file()
    }
    if any(not file.sha256 and file.nbytes <= _LARGEST_IN_GIT for file in missing.values()):
        # The Hub has no sha256 of what is in git itself, and that of a stand-in is another.
        return resolve(source, files, options)
    if not missing:
        # There may be nothing but pickles, which `resolve` refuses.
        return resolve(source, files, options)
    remote = RemoteWeights(pinned, options, missing)
    folder = _make_stand_ins(remote, small_files.folder, scratch)
    return Resolved(source, folder, small_files.commit, remote, options)


def _is_on_this_machine(source: VectorSource, files: Iterable[str], options: HubOptions) -> bool:
    """Check whether everything, weights included, is in the Hub's cache."""
    if options.force_download:
        return False
    try:
        cached = resolve(source, files, replace(options, local_files_only=True))
    except FileNotFoundError:
        return False
    return any(cached.folder.glob(f"*{SAFETENSORS}"))


def _weights_on_hub(source: VectorSource, options: HubOptions) -> Mapping[str, RemoteFile]:
    """Return the safetensors files of a repository, by their paths."""
    with download_errors(source):
        find = partial(hub_api().model_info, source.repo_id, revision=source.revision, token=options.token)
        info = in_time(lambda: find(files_metadata=True))
    weights = {}
    for file in info.siblings or ():
        if file.rfilename.endswith(SAFETENSORS):
            sha256 = file.lfs.sha256 if file.lfs else ""
            size = file.size or 0
            if type(size) is not int or not 0 <= size < _LARGEST_FILE:
                raise HubError(
                    f"The Hub says that '{file.rfilename}' of '{source.repo_id}' has {shown(size)} bytes. Nothing was "
                    "loaded."
                )
            weights[file.rfilename] = RemoteFile(size, sha256)
    return weights


def _make_stand_ins(remote: RemoteWeights, small_files: Path, scratch: Path) -> Path:
    """Make a folder with the small files and a stand-in of each file of weights."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    (folder / HEADERS_ONLY).touch()
    for path in small_files.glob("*"):
        if path.is_file():
            _put(path.resolve(), folder / path.name)
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda path: _make_stand_in(remote, path, folder), remote.files))
    return folder


def _put(file: Path, name: Path) -> None:
    """Give a file a second name, as no reader follows a symbolic link out of a folder.

    Weights get a hard link. It changes the ctime of the cached file, so that its hash is worked out once more. Small
    files are copied.
    """
    if name.suffix == SAFETENSORS:
        with suppress(OSError):  # the cache is on another file system, or on one without links
            name.hardlink_to(file)
            return
    shutil.copyfile(file, name)


def _make_stand_in(remote: RemoteWeights, path: str, folder: Path) -> None:
    size = remote.files[path].nbytes
    start = remote.read(path, 0, min(size, _FIRST))
    header_end = _LENGTH + int.from_bytes(start[:_LENGTH], "little")
    if len(start) < header_end <= size:
        start += remote.read(path, len(start), header_end)
    with (folder / Path(path).name).open("wb") as file:
        file.write(start[:header_end])
        file.truncate(size)
