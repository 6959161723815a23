"""Pushing a merged model to the Hub as one commit: from an exported folder, or file by file while it is merged.

The second way takes disk space for one file of weights only: each file is written, uploaded and removed before the
next one. Uploaded files become visible with the commit, so the repository never has a part of a model.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Unpack

from dem_hub.errors import NotFoundError
from dem_hub.files.names import CARD, MODEL_WEIGHT_FILES, PROVENANCE_CONFIG
from dem_hub.hub.cards import render
from dem_hub.hub.commits import Change, Content, Head, PushOptions, push, upload
from dem_hub.hub.listing import licenses
from dem_hub.hub.references import VectorSource
from dem_hub.merging.cards import recipe_card
from dem_hub.merging.config import DEMConfig
from dem_hub.models.estimate import Estimate, estimate
from dem_hub.models.planned import PlannedModel, merging_bar

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


def push_export(folder: Path, repo_id: str, **options: Unpack[PushOptions]) -> "CommitInfo":
    """Push the folder of an exported model with a card, as one commit. An older model's weights are replaced.

    Args:
        folder (`Path`): What [`export`] wrote.
        repo_id (`str`): Repository to push to, `namespace/name`. It is created if it does not exist.
        options ([`PushOptions`]): As in [`DistributionVector.push_to_hub`].

    Raises:
        [`~dem_hub.errors.NotFoundError`]: If the folder has no model that dem_hub merged.
        [`~dem_hub.errors.PushConflictError`]: If another commit changed the same files in the meantime.
    """
    if not (folder / PROVENANCE_CONFIG).is_file():
        raise NotFoundError(
            f"'{folder}' has no {PROVENANCE_CONFIG}: it is no model that dem_hub merged. Check the path."
        )
    files: dict[str, Content] = {
        path.name: path for path in sorted(folder.iterdir()) if path.is_file() and path.name != CARD
    }
    return _push(DEMConfig.from_pretrained(folder), lambda _: files, repo_id, options)


def estimate_push(model: PlannedModel) -> Estimate:
    """Return what [`push_merged`] will take, and push nothing.

    Raises:
        [`~dem_hub.errors.DiskSpaceError`]: If the temporary folder has no room for the largest file.
    """
    largest = max(shard.nbytes for shard in model.shards)
    return estimate(model, Path(gettempdir()), largest)


def push_merged(model: PlannedModel, repo_id: str, **options: Unpack[PushOptions]) -> "CommitInfo":
    """Merge a model and push it file by file: each file is written, uploaded and removed before the next one.

    One commit makes all files visible. A push that failed leaves no commit. The next one merges everything again, and
    uploads what the Hub does not have yet.

    Args:
        model ([`PlannedModel`]): The model.
        repo_id (`str`): Repository to push to, `namespace/name`. It is created if it does not exist.
        options ([`PushOptions`]): As in [`DistributionVector.push_to_hub`].

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If the base or the merged weights have NaN or inf.
        [`~dem_hub.errors.PushConflictError`]: If another commit changed the same files in the meantime.
        [`~dem_hub.errors.HubError`]: If the network or the Hub failed.
    """
    small_files: dict[str, Content] = {**model.copies, **model.texts(), **model.index}
    weights: dict[str, Content] = {}

    def gather(head: Head) -> Mapping[str, Content]:
        # Called again if the branch moves before the commit. The weights are merged and uploaded once.
        if not weights:
            weights.update(_upload_weights(model, head, options))
        return {**small_files, **weights}

    return _push(replace(model.opened.recipe, dtype=model.dtype), gather, repo_id, options)


def _upload_weights(model: PlannedModel, head: Head, options: PushOptions) -> dict[str, Content]:
    uploaded: dict[str, Content] = {}
    with TemporaryDirectory(prefix="dem_hub-") as folder, merging_bar(model.nbytes) as bar:
        for shard in model.shards:
            file = Path(folder, shard.name)
            offset = bar.n
            for written in model.write(file, shard):
                bar.update(offset + written - bar.n)
            uploaded[shard.name] = upload(head, shard.name, file, options)
            file.unlink()
    return uploaded


@dataclass(frozen=True)
class _PublicNames:
    """How the base and the vectors of a recipe are called on a card, and which of them are folders of this machine."""

    base: str
    vectors: tuple[str, ...]
    repositories: tuple[str, ...]
    local: tuple[VectorSource, ...]

    @classmethod
    def of(cls, recipe: DEMConfig) -> "_PublicNames":
        """Name a repository by its id, and a folder by the last part of its path."""
        sources = [recipe.base.source, *(vector.source for vector in recipe.vectors)]
        names = []
        for source in sources:
            name = str(replace(source, revision=None))
            names.append(Path(name).name if source.is_local else name)
        repositories = dict.fromkeys(source.repo_id for source in sources if not source.is_local)
        local = tuple(source for source in sources if source.is_local)
        return cls(names[0], tuple(names[1:]), tuple(repositories), local)


def _push(
    recipe: DEMConfig, gather: Callable[[Head], Mapping[str, Content]], repo_id: str, options: PushOptions
) -> "CommitInfo":
    """Push the files of a merged model with a card, in place of an older model's weights."""
    names = _PublicNames.of(recipe)
    if names.local:
        _warn_of_folders(names.local)
    stated_licenses = licenses(names.repositories, token=options.get("token"))
    coefficients = dict(zip(names.vectors, recipe.coefficients.values(), strict=True))

    def compose(head: Head) -> Change:
        files = dict(gather(head))
        if names.local:
            files.pop(PROVENANCE_CONFIG, None)
        card = recipe_card(head.repo_id, names.base, coefficients, recipe.search, stated_licenses, merged=True)
        old_weights = {path for path in head.files if fnmatch(path, MODEL_WEIGHT_FILES) and path not in files}
        return Change({**files, CARD: render(card, head.read(CARD))}, frozenset(old_weights))

    return push(repo_id, compose, options, "Push the merged model")


def _warn_of_folders(folders: Sequence[VectorSource]) -> None:
    names = ", ".join(f"'{source}'" for source in folders)
    warnings.warn(
        f"{PROVENANCE_CONFIG} names folders of this machine ({names}), and is not pushed with the model.",
        stacklevel=4,
    )
