"""Finding things on this machine and on the Hub.

Whatever is named (a base, a vector, a recipe) is resolved once, to a folder and a commit, and everything is read
from there: two reads of a branch can meet two commits. Downloads are checked against the hashes that the Hub has of
them.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dem_hub.errors import CheckpointError, NotFoundError
from dem_hub.files.links import check_links
from dem_hub.files.names import PICKLES, SAFETENSORS, SIDE_FILES, WEIGHT_COPIES
from dem_hub.files.replacing import settle
from dem_hub.hub.client import HubOptions, hub_api
from dem_hub.hub.failures import download_errors
from dem_hub.hub.hashes import verify_downloads
from dem_hub.hub.references import REPO_ID, VectorSource
from dem_hub.hub.remote import RemoteWeights


@dataclass(frozen=True)
class Resolved:
    """A source that was found: its folder on this machine, and its commit on the Hub (`None` for a local folder).

    `remote` is set if weights are still on the Hub. The folder then has stand-ins of them (see
    [`dem_hub.hub.headers`]).
    """

    source: VectorSource
    folder: Path
    commit: str | None
    remote: RemoteWeights | None = None

    @classmethod
    def local(cls, folder: Path) -> "Resolved":
        """Return a local folder as a source that was found."""
        return cls(VectorSource(str(folder)), folder, None)


def resolve(
    source: VectorSource, files: Iterable[str], options: HubOptions | None = None, *, without: tuple[str, ...] = ()
) -> Resolved:
    """Find a source on this machine, or download it from the Hub.

    Args:
        source ([`VectorSource`]): A folder or a Hub id.
        files (`Iterable[str]`): Glob patterns of the files that are wanted. Nothing else is downloaded.
        options ([`HubOptions`], *optional*): How to reach the Hub.
        without (`tuple[str, ...]`, *optional*): Glob patterns of files that are not wanted even if they match
            `files`.

    Returns:
        [`Resolved`]: The folder (its subfolder, if the source names one) and the commit.

    Raises:
        [`~dem_hub.errors.NotFoundError`]: If there is no such folder and the name cannot be a Hub id, or the folder
            has no such subfolder.
        [`~dem_hub.errors.ConfigError`]: If a file that is wanted from a folder is a link that leads out of it.
        [`~dem_hub.errors.CheckpointError`]: If files were damaged during the download, or all weights are pickled.
        [`~dem_hub.errors.HubError`]: If the connection or the Hub failed.
        `huggingface_hub.errors.HfHubHTTPError`: If the Hub refused.
    """
    options = options or HubOptions()
    if source.is_local:
        root = Path(source.repo_id)
        folder = root / source.subfolder
        if not folder.is_dir():
            raise NotFoundError(f"'{source.repo_id}' has no subfolder '{source.subfolder}'.")
        settle(folder)
        check_links(folder, files, root)
        return Resolved(source, folder, None)
    if not REPO_ID.fullmatch(source.repo_id):
        raise NotFoundError(
            f"'{source.repo_id}' is not a local folder, and not a Hub id (namespace/name). Check the path."
        )
    snapshot = _download(source, tuple(files), without, options)
    return Resolved(source, snapshot / source.subfolder, snapshot.name)


def wanted_names(
    source: VectorSource, names: Iterable[str], files: Iterable[str], without: Iterable[str] = ()
) -> list[str]:
    """Return the names of a repository's files that match `files` and are in the source's subfolder itself."""
    from huggingface_hub.utils import filter_repo_objects

    allowed, ignored = _patterns(source, files, without)
    return list(filter_repo_objects(names, allow_patterns=allowed, ignore_patterns=ignored))


def copy_side_files(source: VectorSource | Path, target: Path, options: HubOptions | None = None) -> None:
    """Copy a model's tokenizer, chat template and generation config into a folder."""
    folder = source if isinstance(source, Path) else resolve(source, SIDE_FILES, options).folder
    check_links(folder, SIDE_FILES)
    for name in SIDE_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)


def _patterns(source: VectorSource, files: Iterable[str], without: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the patterns to allow and to ignore, for the names of the whole repository."""
    prefix = f"{source.subfolder}/" if source.subfolder else ""
    # A `*` of these patterns matches slashes too. Folders inside the source are other sources, so they are ignored.
    ignored = ("*/*", *WEIGHT_COPIES, *without)
    return [prefix + pattern for pattern in files], [prefix + pattern for pattern in ignored]


def _download(source: VectorSource, files: tuple[str, ...], without: tuple[str, ...], options: HubOptions) -> Path:
    """Return the snapshot of a repository with the files that are wanted, downloaded and checked."""
    allowed, ignored = _patterns(source, files, without)
    with download_errors(source):
        snapshot = Path(
            hub_api().snapshot_download(
                source.repo_id,
                revision=source.revision,
                cache_dir=None if options.cache_dir is None else Path(options.cache_dir),
                token=options.token,
                local_files_only=options.local_files_only,
                force_download=options.force_download,
                allow_patterns=allowed,
                ignore_patterns=ignored,
            )
        )
    # The snapshot of the cache may have more files, from earlier downloads.
    folder = snapshot / source.subfolder
    present = [path.relative_to(snapshot).as_posix() for path in sorted(folder.glob("*")) if path.is_file()]
    verify_downloads(source.repo_id, [snapshot / name for name in wanted_names(source, present, files, without)])
    weights_wanted = not without and _any_safetensors(files)
    if weights_wanted and not _any_safetensors(present) and not options.local_files_only:
        _refuse_pickles(source, snapshot.name, options)
    return snapshot


def _any_safetensors(names: Iterable[str]) -> bool:
    return any(name.endswith(SAFETENSORS) for name in names)


def _refuse_pickles(source: VectorSource, commit: str, options: HubOptions) -> None:
    """Refuse a repository whose weights are all pickled; the caller knows that it has no safetensors."""
    with download_errors(source):
        names = hub_api().list_repo_files(source.repo_id, revision=commit, token=options.token)
    pickles = [name for name in names if name.rpartition("/")[0] == source.subfolder and name.endswith(PICKLES)]
    if not pickles:
        return
    if any(name.rpartition("/")[2].startswith("adapter_") for name in pickles):
        load = f"PeftModel.from_pretrained(base, '{source.repo_id}')"
    else:
        load = f"AutoModel.from_pretrained('{source.repo_id}', use_safetensors=False)"
    raise CheckpointError(
        f"'{source}' has only pickled weights ({', '.join(pickles[:3])}), which can run code when they are "
        f"read. If you trust them, convert them: {load}.save_pretrained(folder) writes safetensors."
    )
