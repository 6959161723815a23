"""Finding things on this machine and on the Hub.

Whatever is named (a base, a vector, a recipe) is resolved once, to a folder and a commit, and everything is read from there: two
reads of a branch can meet two commits. What comes down is checked against the hashes that the Hub has of it. One `HfApi` carries our name
and version.
"""

import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dem_hub._version import __version__
from dem_hub.errors import CheckpointError, NotFoundError
from dem_hub.files.names import PICKLES, SAFETENSORS, SIDE_FILES, WEIGHT_COPIES
from dem_hub.hub.client import HubOptions, hub_api
from dem_hub.hub.failures import hub_errors
from dem_hub.hub.hashes import verify_downloads
from dem_hub.hub.references import REPO_ID, VectorSource

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Remote:
    """Weights that are still on the Hub: where, and the size and sha256 of each file, by its path in the repository."""

    source: VectorSource
    options: HubOptions
    files: Mapping[str, tuple[int, str]]

    @property
    def nbytes(self) -> int:
        """What would come down."""
        return sum(size for size, _ in self.files.values())

    @property
    def cache(self) -> Path:
        """Where it would come to."""
        from huggingface_hub import constants

        return Path(self.options.cache_dir or constants.HF_HUB_CACHE)

    @property
    def hashes(self) -> dict[str, str]:
        """The sha256 of each file, by its name."""
        return {Path(path).name: sha256 for path, (_, sha256) in self.files.items() if sha256}

    def read(self, path: str, start: int, stop: int) -> bytes:
        """Some bytes of a file, by a ranged request."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.errors import SafetensorsParsingError
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        headers = build_hf_headers(token=self.options.token, library_name="dem-hub", library_version=__version__)
        address = hf_hub_url(self.source.repo_id, path, revision=self.source.revision, endpoint=hub_api().endpoint)
        with download_errors(self.source):
            response = get_session().get(address, headers={**headers, "range": f"bytes={start}-{stop - 1}"})
            hf_raise_for_status(response)
            found = bytes(response.content[: stop - start])
            if len(found) < stop - start:
                raise SafetensorsParsingError(f"{len(found)} bytes of {stop - start} of {path}")
        return found


@dataclass(frozen=True)
class Resolved:
    """A source found: its folder on this machine, and its commit (`None` for a folder that was always here).

    `remote` is set where weights are still on the Hub, and the folder has stubs of them (see `stubs`).
    """

    source: VectorSource
    folder: Path
    commit: str | None
    remote: Remote | None = None

    @classmethod
    def local(cls, folder: Path) -> "Resolved":
        """Return a folder of this machine as a source that was found, without looking for it."""
        return cls(VectorSource(str(folder)), folder, None)


def resolve(
    source: VectorSource, files: Iterable[str], options: HubOptions | None = None, *, without: tuple[str, ...] = ()
) -> Resolved:
    """Find a source on this machine or fetch it from the Hub.

    Args:
        source ([`VectorSource`]): a folder or a Hub id.
        files (`Iterable[str]`): glob patterns of what is wanted; nothing else is downloaded.
        options ([`HubOptions`], *optional*): token, cache and so on.
        without (`tuple[str, ...]`): patterns of what is not wanted all the same.

    Returns:
        [`Resolved`]: the folder (its subfolder, where one is named) and the commit it was read at.

    Raises:
        `NotFoundError`: no such folder, and the name cannot be a Hub id; or the folder has no such subfolder.
        `CheckpointError`: files that were damaged on their way, or weights that are all pickled.
        `HubError`: the line or the Hub failed. `huggingface_hub.errors.HfHubHTTPError`: the Hub refused.
    """
    options = options or HubOptions()
    if source.is_local:
        folder = Path(source.repo_id) / source.subfolder
        if not folder.is_dir():
            raise NotFoundError(f"'{source.repo_id}' has no subfolder '{source.subfolder}'.")
        return Resolved(source, folder, None)
    if not REPO_ID.fullmatch(source.repo_id):
        raise NotFoundError(
            f"'{source.repo_id}' is not a folder here, and not a Hub id (namespace/name). Check the path."
        )
    snapshot = _download(source, tuple(files), without, options)
    return Resolved(source, snapshot / source.subfolder, snapshot.name)


def wanted_names(
    source: VectorSource, names: Iterable[str], files: Iterable[str], without: Iterable[str] = ()
) -> list[str]:
    """Those of a repository's names that patterns ask for; subfolders are repositories of their own to us."""
    from huggingface_hub.utils import filter_repo_objects

    wanted, ignored = _patterns(source, files, without)
    return list(filter_repo_objects(names, allow_patterns=wanted, ignore_patterns=ignored))


def _patterns(source: VectorSource, files: Iterable[str], without: Iterable[str]) -> tuple[list[str], list[str]]:
    prefix = f"{source.subfolder}/" if source.subfolder else ""
    return [prefix + pattern for pattern in files], [prefix + pattern for pattern in ("*/*", *WEIGHT_COPIES, *without)]


def _download(source: VectorSource, files: tuple[str, ...], without: tuple[str, ...], options: HubOptions) -> Path:
    """The snapshot of a repository with all that is wanted of it."""
    wanted, ignored = _patterns(source, files, without)
    with download_errors(source):
        found = hub_api().snapshot_download(
            source.repo_id,
            revision=source.revision,
            cache_dir=options.cache_dir if options.cache_dir is None else Path(options.cache_dir),
            token=options.token,
            local_files_only=options.local_files_only,
            force_download=options.force_download,
            allow_patterns=wanted,
            ignore_patterns=ignored,
        )
    snapshot = Path(found)
    here = sorted(
        path.relative_to(snapshot).as_posix() for path in (snapshot / source.subfolder).glob("*") if path.is_file()
    )
    verify_downloads(source.repo_id, [snapshot / name for name in wanted_names(source, here, files, without)])
    if (
        any(name.endswith(SAFETENSORS) for name in files)
        and not without
        and not any(name.endswith(SAFETENSORS) for name in here)
    ):
        _refuse_pickles(source, snapshot.name, options)
    return snapshot


def _refuse_pickles(source: VectorSource, commit: str, options: HubOptions) -> None:
    """Say so where a repository has weights, and all of them are pickled."""
    if options.local_files_only:
        return
    with download_errors(source):
        names = hub_api().list_repo_files(source.repo_id, revision=commit, token=options.token)
    pickles = [name for name in names if name.rpartition("/")[0] == source.subfolder and name.endswith(PICKLES)]
    if pickles:
        adapter = any(name.rpartition("/")[2].startswith("adapter_") for name in pickles)
        load = (
            "PeftModel.from_pretrained(base, '{}')"
            if adapter
            else "AutoModel.from_pretrained('{}', use_safetensors=False)"
        )
        raise CheckpointError(
            f"'{source}' has only pickled weights ({', '.join(pickles[:3])}), which can run code when they are read. If you trust them, "
            f"convert them: {load.format(source.repo_id)}.save_pretrained(folder) writes safetensors."
        )


def download_errors(source: VectorSource) -> AbstractContextManager[None]:
    """Turn failures of a block that downloads `source` into a `HubError` that names it."""
    return hub_errors(
        action=f"'{source.repo_id}' is not a local folder, so it was looked up on the Hub.",
        remedy="Nothing was loaded. Try again: complete files are not downloaded twice.",
    )


def copy_side_files(source: VectorSource | Path, target: Path, options: HubOptions | None = None) -> None:
    """Copy a model's tokenizer, chat template and generation config into a folder."""
    folder = source if isinstance(source, Path) else resolve(source, SIDE_FILES, options).folder
    for name in SIDE_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
