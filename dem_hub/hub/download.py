"""Finding things on this machine and on the Hub.

Whatever is named (a base, a vector, a recipe) is resolved once, to a folder and a commit, and everything is read
from there: two reads of a branch can meet two commits. Downloads are checked against the hashes that the Hub has of
them.
"""

import logging
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from dem_hub.errors import CheckpointError, NotFoundError
from dem_hub.files.links import check_links
from dem_hub.files.names import NO_SIDE_FILES, PICKLES, SAFETENSORS, WEIGHT_COPIES
from dem_hub.files.replacing import settle
from dem_hub.files.side_files import module_folders, modules_with_weights, side_files_of
from dem_hub.hub.bounded import bounded
from dem_hub.hub.client import HubOptions, hub_api
from dem_hub.hub.failures import download_errors
from dem_hub.hub.hashes import verify_downloads
from dem_hub.hub.references import REPO_ID, VectorSource
from dem_hub.hub.remote import RemoteWeights, in_time

logger = logging.getLogger(__name__)

# A `*` of a pattern matches slashes too. Folders inside a source are other sources, so they are not wanted.
_NOT_WANTED = ("*/*", *WEIGHT_COPIES)


@dataclass(frozen=True)
class Resolved:
    """A source that was found: its folder on this machine, and its commit on the Hub (`None` for a local folder).

    `options` are those by which it was found. `remote` is set if weights are still on the Hub. The folder then has
    stand-ins of them (see [`dem_hub.hub.headers`]).
    """

    source: VectorSource
    folder: Path
    commit: str | None
    remote: RemoteWeights | None = None
    options: HubOptions = field(default_factory=HubOptions, repr=False)

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
        return Resolved(source, folder, None, options=options)
    if not REPO_ID.fullmatch(source.repo_id):
        raise NotFoundError(
            f"'{source.repo_id}' is not a local folder, and not a Hub id (namespace/name). Check the path."
        )
    wanted = tuple(files)
    snapshot = _download(source, wanted, (*_NOT_WANTED, *without), options)
    folder = snapshot / source.subfolder
    weights_wanted = not without and _any_safetensors(wanted)
    has_weights = _any_safetensors(path.name for path in folder.glob("*"))
    if weights_wanted and not has_weights and not options.local_files_only:
        _refuse_pickles(source, snapshot.name, options)
    return Resolved(source, folder, snapshot.name, options=options)


def wanted_names(
    source: VectorSource, names: Iterable[str], files: Iterable[str], without: Iterable[str] = ()
) -> list[str]:
    """Return the names of a repository's files that match `files` and are in the source's subfolder itself."""
    from huggingface_hub.utils import filter_repo_objects

    prefix = f"{source.subfolder}/" if source.subfolder else ""
    allowed = [prefix + pattern for pattern in files]
    ignored = [prefix + pattern for pattern in (*_NOT_WANTED, *without)]
    return list(filter_repo_objects(names, allow_patterns=allowed, ignore_patterns=ignored))


def side_files(source: VectorSource, options: HubOptions | None = None) -> dict[str, Path]:
    """Return a model's side files, by their paths beside its weights; those on the Hub are downloaded.

    See [`dem_hub.files.side_files`] for what they are.

    Raises:
        The errors of [`resolve`].
    """
    options = options or HubOptions()
    if source.is_local:
        resolved = resolve(source, (), options)
    else:
        snapshot = _download(source, ("*",), NO_SIDE_FILES, options)
        resolved = Resolved(source, snapshot / source.subfolder, snapshot.name, options=options)
    folder = resolved.folder
    weights = module_weights(resolved)
    for module in module_folders(folder):
        if not (folder / module).is_dir():
            logger.warning("'%s' lacks its module '%s', so what is made from it lacks it too.", source, module)
        elif weights.get(module) == []:
            logger.warning(
                "The module '%s' of '%s' has no weights in safetensors, and pickled ones are not copied, so what is "
                "made from it lacks them. Convert them: SentenceTransformer(...).save_pretrained(folder).",
                module,
                source,
            )
    return side_files_of(folder, is_published=not source.is_local)


def module_weights(resolved: Resolved) -> dict[str, list[Path]]:
    """Return the files of weights of each module of sentence-transformers that has some of its own, by its folder.

    A list is empty if there are none in safetensors. Those on the Hub are downloaded.

    Raises:
        The errors of [`resolve`].
    """
    modules = modules_with_weights(resolved.folder)
    if modules and resolved.commit is not None:
        source = replace(resolved.source, revision=resolved.commit)
        _download(source, tuple(f"{module}/*{SAFETENSORS}" for module in modules), (), resolved.options)
    return {module: sorted((resolved.folder / module).glob(f"*{SAFETENSORS}")) for module in modules}


def copy_side_files(files: Mapping[str, Path], target: Path) -> None:
    """Copy side files into a folder, each to its path there."""
    for name, file in files.items():
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)


def _download(source: VectorSource, files: tuple[str, ...], without: tuple[str, ...], options: HubOptions) -> Path:
    """Return the snapshot of a repository with the files that are wanted, downloaded and checked.

    `files` and `without` are patterns of paths in the source's subfolder, and a `*` of them matches slashes too.
    """
    from huggingface_hub.utils import filter_repo_objects

    prefix = f"{source.subfolder}/" if source.subfolder else ""
    allowed = [prefix + pattern for pattern in files]
    ignored = [prefix + pattern for pattern in without]
    call = partial(
        hub_api().snapshot_download,
        source.repo_id,
        revision=source.revision,
        cache_dir=None if options.cache_dir is None else Path(options.cache_dir),
        token=options.token,
        local_files_only=options.local_files_only,
        force_download=options.force_download,
        allow_patterns=allowed,
        ignore_patterns=ignored,
    )
    with download_errors(source):
        if options.local_files_only:
            snapshot = Path(call())
        else:
            snapshot = Path(bounded(lambda meter: call(tqdm_class=meter), source.repo_id, options.cache_dir))
    # The snapshot of the cache may have more files, from earlier downloads.
    folder = snapshot / source.subfolder
    present = [path.relative_to(snapshot).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    wanted = filter_repo_objects(present, allow_patterns=allowed, ignore_patterns=ignored)
    verify_downloads(source.repo_id, [snapshot / name for name in wanted])
    return snapshot


def _any_safetensors(names: Iterable[str]) -> bool:
    return any(name.endswith(SAFETENSORS) for name in names)


def _refuse_pickles(source: VectorSource, commit: str, options: HubOptions) -> None:
    """Refuse a repository whose weights are all pickled; the caller knows that it has no safetensors."""
    with download_errors(source):
        ask = partial(hub_api().list_repo_files, source.repo_id, revision=commit, token=options.token)
        names = in_time(ask)
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
