"""A merged model, pushed to the Hub as one commit: from its folder, or file by file as it is merged, with the disk of one file."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING, Unpack

from dem_hub.errors import NotFoundError
from dem_hub.files.names import CARD, MODEL_WEIGHT_FILES, PROVENANCE_CONFIG
from dem_hub.hub.cards import render
from dem_hub.hub.commits import Change, Content, Head, PushOptions, push, upload
from dem_hub.hub.listing import licenses
from dem_hub.merging.cards import recipe_card
from dem_hub.merging.config import DEMConfig
from dem_hub.models.estimate import Estimate, estimate
from dem_hub.models.planned import PlannedModel, merging_bar

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo


def push_export(folder: Path, repo_id: str, **options: Unpack[PushOptions]) -> "CommitInfo":
    """Push a merged model's folder, with a card, as one commit; the weights of an older one are replaced.

    Args:
        folder (`Path`): what [`export`] wrote.
        repo_id (`str`): the repository; made where there is none.
        options ([`PushOptions`]): as in [`DistributionVector.push_to_hub`].

    Raises:
        `NotFoundError`: no merged model there. `PushConflictError`: somebody else changed the same files meanwhile.
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
    """What [`push_merged`] will do, and nothing done yet.

    Raises:
        `DiskSpaceError`: there is no room for the largest file.
    """
    return estimate(model, Path(gettempdir()), max(shard.nbytes for shard in model.shards))


def push_merged(model: PlannedModel, repo_id: str, **options: Unpack[PushOptions]) -> "CommitInfo":
    """Merge and push file by file: each is written, uploaded and removed before the next, and one commit makes all of them visible.

    A push that failed has left no commit. The next one merges all again, and uploads what is not there yet.

    Args:
        model ([`PlannedModel`]): what to push.
        repo_id (`str`): the repository; made where there is none.
        options ([`PushOptions`]): as in [`DistributionVector.push_to_hub`].

    Raises:
        `CheckpointError`: NaN or inf in the base or after the merge. `PushConflictError`: somebody else changed the same files meanwhile.
        `HubError`: the line or the Hub failed.
    """
    small: dict[str, Content] = {**model.copies, **model.texts(), **model.index}
    weights: dict[str, Content] = {}

    def gather(head: Head) -> Mapping[str, Content]:
        if not weights:
            weights.update(_upload_weights(model, head, options))
        return {**small, **weights}

    return _push(replace(model.opened.recipe, dtype=model.dtype), gather, repo_id, options)


def _upload_weights(model: PlannedModel, head: Head, options: PushOptions) -> dict[str, Content]:
    uploaded: dict[str, Content] = {}
    with TemporaryDirectory(prefix="dem_hub-") as folder, merging_bar(model.nbytes) as bar:
        for shard in model.shards:
            file, before = Path(folder, shard.name), bar.n
            for written in model.write(file, shard):
                bar.update(before + written - bar.n)
            uploaded[shard.name] = upload(head, shard.name, file, options)
            file.unlink()
    return uploaded


def _push(
    recipe: DEMConfig, gather: Callable[[Head], Mapping[str, Content]], repo_id: str, options: PushOptions
) -> "CommitInfo":
    """Push the files of a merged model with a card, in place of an older one's weights."""
    sources = [recipe.base.source, *(vector.source for vector in recipe.vectors)]
    public = {str(replace(source, revision=None)): source for source in sources if not source.is_local}
    if len(public) < len(sources):
        names = ", ".join(f"'{source}'" for source in sources if source.is_local)
        warnings.warn(
            f"{PROVENANCE_CONFIG} names folders of this machine ({names}), and is not pushed with the model.",
            stacklevel=3,
        )
    stated = licenses(dict.fromkeys(source.repo_id for source in public.values()), token=options.get("token"))
    called = [name if name in public else Path(name).name for name in (str(replace(s, revision=None)) for s in sources)]
    shown = dict(zip(called[1:], recipe.coefficients.values(), strict=True))

    def compose(head: Head) -> Change:
        own = {
            name: content
            for name, content in gather(head).items()
            if name != PROVENANCE_CONFIG or len(public) == len(sources)
        }
        card = recipe_card(head.repo_id, called[0], shown, recipe.search, stated, merged=True)
        old = {path for path in head.files if fnmatch(path, MODEL_WEIGHT_FILES) and path not in own}
        return Change({**own, CARD: render(card, head.read(CARD))}, frozenset(old))

    return push(repo_id, compose, options, "Push the merged model")
