"""Pushing a merged model to the Hub as one commit: from an exported folder, or file by file while it is merged.

The second way takes disk space for one file of weights only: each file is written, uploaded and removed before the
next one. Uploaded files become visible with the commit, so the repository never has a part of a model.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, TypeVar, Unpack

from dem_hub.errors import NotFoundError
from dem_hub.files.names import CARD, MODEL_WEIGHT_FILES, PROVENANCE_CONFIG
from dem_hub.files.scratch import scratch_folder
from dem_hub.hub.cards import render
from dem_hub.hub.commits import Change, Content, Head, PushOptions, push, upload
from dem_hub.hub.listing import licenses
from dem_hub.hub.preview import announce
from dem_hub.hub.references import VectorSource
from dem_hub.merging.cards import recipe_card, repositories
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.publishing import public_below
from dem_hub.models.estimate import Estimate, estimate
from dem_hub.models.manifest import is_code, merged_files, owned_files
from dem_hub.models.planned import PlannedModel, merging_bar
from dem_hub.vectors.publishing import public_base

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

_File = TypeVar("_File")


def push_export(
    folder: Path,
    repo_id: str,
    *,
    include_code: bool = False,
    base_model: str | None = None,
    **options: Unpack[PushOptions],
) -> "CommitInfo":
    """Push an exported model with a card, as one commit. An older model's weights are replaced.

    What else is in the folder stays on this machine.

    Args:
        folder (`Path`): What [`export`] wrote.
        repo_id (`str`): Repository to push to, `namespace/name`. It is created if it does not exist.
        include_code (`bool`, *optional*, defaults to `False`): Also push the base's own code (`*.py`). It runs on the
            machine of everybody who loads the model with `trust_remote_code=True`.
        base_model (`str`, *optional*): Hub id of the base, for the card, if the model was merged from a local base.
        options ([`PushOptions`]): As in [`DistributionVector.push_to_hub`].

    Raises:
        [`~dem_hub.errors.NotFoundError`]: If the folder has no model that dem_hub merged.
        [`~dem_hub.errors.CheckpointError`]: If files of the model are missing, or weights have another size.
        [`~dem_hub.errors.ConfigError`]: If a file of the model is a link that leads out of the folder.
        [`~dem_hub.errors.PushConflictError`]: If another commit changed the same files in the meantime.
    """
    if not (folder / PROVENANCE_CONFIG).is_file():
        raise NotFoundError(
            f"'{folder}' has no {PROVENANCE_CONFIG}: it is no model that dem_hub merged. Check the path."
        )
    if not include_code:
        _warn_of_code(name for name in owned_files(folder) if is_code(name))
    found = merged_files(folder, include_code=include_code)
    files: dict[str, Content] = dict(found)
    return _push(DEMConfig.from_pretrained(folder), lambda _: files, found, repo_id, base_model, options)


def estimate_push(model: PlannedModel) -> Estimate:
    """Return what [`push_merged`] will take, and push nothing.

    Raises:
        [`~dem_hub.errors.DiskSpaceError`]: If the temporary folder has no room for the largest file.
    """
    largest = max(shard.nbytes for shard in model.shards)
    return estimate(model, Path(gettempdir()), largest)


def push_merged(
    model: PlannedModel,
    repo_id: str,
    *,
    include_code: bool = False,
    base_model: str | None = None,
    **options: Unpack[PushOptions],
) -> "CommitInfo":
    """Merge a model and push it file by file: each file is written, uploaded and removed before the next one.

    One commit makes all files visible. A push that failed leaves no commit. The next one merges everything again, and
    uploads what the Hub does not have yet.

    Args:
        model ([`PlannedModel`]): The model.
        repo_id (`str`): Repository to push to, `namespace/name`. It is created if it does not exist.
        include_code, base_model: As in [`push_export`].
        options ([`PushOptions`]): As in [`DistributionVector.push_to_hub`].

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If the base or the merged weights have NaN or inf.
        [`~dem_hub.errors.PushConflictError`]: If another commit changed the same files in the meantime.
        [`~dem_hub.errors.HubError`]: If the network or the Hub failed.
    """
    small_files = _small_files(model, include_code=include_code)
    weights: dict[str, Content] = {}

    def gather(head: Head) -> Mapping[str, Content]:
        # Called again if the branch moves before the commit. The weights are merged and uploaded once.
        if not weights:
            weights.update(_upload_weights(model, head, options))
        return {**small_files, **weights}

    listed = {**small_files, **{shard.name: shard.file_size for shard in model.shards}}
    return _push(replace(model.opened.recipe, dtype=model.dtype), gather, listed, repo_id, base_model, options)


def _small_files(model: PlannedModel, *, include_code: bool) -> dict[str, Path | str]:
    """Return all files of a planned model but its weights."""
    copies = model.copies
    if not include_code:
        code = [name for name in copies if is_code(name)]
        _warn_of_code(code)
        copies = {name: path for name, path in copies.items() if name not in code}
    return {**copies, **model.texts(), **model.index}


def _upload_weights(model: PlannedModel, head: Head, options: PushOptions) -> dict[str, Content]:
    uploaded: dict[str, Content] = {}
    with scratch_folder() as folder, merging_bar(model.nbytes) as bar:
        for shard in model.shards:
            file = folder / shard.name
            offset = bar.n
            for written in model.write(file, shard):
                bar.update(offset + written - bar.n)
            uploaded[shard.name] = upload(head, shard.name, file, options)
            file.unlink()
    model.opened.check_unchanged()
    return uploaded


def _push(
    recipe: DEMConfig,
    gather: Callable[[Head], Mapping[str, Content]],
    listed: Mapping[str, Path | str | int],
    repo_id: str,
    base_model: str | None,
    options: PushOptions,
) -> "CommitInfo":
    """Push the files of a merged model with a card, in place of an older model's weights."""
    token = options.get("token")
    if base_model is not None:
        recipe = replace(recipe, base=public_base(recipe.base, base_model, "merged model", token=token))
    provenance = {PROVENANCE_CONFIG: recipe.to_json()}
    sources = [recipe.base.source, *(vector.source for vector in recipe.vectors)]
    folders = [source for source in sources if not source.is_repository]
    if folders:
        _warn_of_folders(folders)
        provenance = {}
    announce(repo_id, {**_without_provenance(listed), **provenance})
    stated_licenses = licenses(repositories(recipe), token=token)
    below = public_below(recipe, token=token)

    def compose(head: Head) -> Change:
        files = {**_without_provenance(gather(head)), **provenance}
        card = recipe_card(head.repo_id, recipe, stated_licenses, merged=True, below=below)
        old_weights = {path for path in head.files if fnmatch(path, MODEL_WEIGHT_FILES) and path not in files}
        return Change({**files, CARD: render(card, head.read(CARD))}, frozenset(old_weights))

    return push(repo_id, compose, options, "Push the merged model")


def _without_provenance(files: Mapping[str, _File]) -> dict[str, _File]:
    return {name: file for name, file in files.items() if name != PROVENANCE_CONFIG}


def _warn_of_code(names: Iterable[str]) -> None:
    code = ", ".join(sorted(names))
    if code:
        warnings.warn(
            f"The base's own code ({code}) is not pushed. If the model needs it, and you trust it: --include-code, in "
            "Python include_code=True.",
            stacklevel=4,
        )


def _warn_of_folders(folders: Sequence[VectorSource]) -> None:
    names = ", ".join(f"'{source}'" for source in folders)
    warnings.warn(
        f"{PROVENANCE_CONFIG} names folders of this machine ({names}), and is not pushed with the model. If the base "
        "is one of them, say what the Hub calls it: --base-model org/base, in Python base_model='org/base'.",
        stacklevel=4,
    )
