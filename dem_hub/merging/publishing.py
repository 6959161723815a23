"""Pushing a recipe to the Hub, with its card, the base's tokenizer and a plot, as one commit.

A public recipe refers to repositories only. A vector in a folder of this machine must be pushed first, or comes along
in a subfolder of the recipe's repository; anything else is refused before the first request that writes.
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.errors import ConfigError, MissingDependencyError, refuse
from dem_hub.files.distinct_names import distinct_names
from dem_hub.files.names import CARD, PERPLEXITY_PLOT, RECIPE_CONFIG
from dem_hub.files.scratch import scratch_folder
from dem_hub.hub.cards import render
from dem_hub.hub.client import HubOptions
from dem_hub.hub.commits import Change, Head, PushOptions, push
from dem_hub.hub.listing import is_private, licenses
from dem_hub.hub.preview import announce
from dem_hub.merging.cards import recipe_card, repositories
from dem_hub.merging.records import HERE, VectorRecord
from dem_hub.plotting import draw_perplexities
from dem_hub.vectors.publishing import public_base, public_vector

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from dem_hub.merging.config import DEMConfig

# Folder of a recipe's repository for the vectors that come along with it.
VECTORS = "vectors"


@dataclass(frozen=True)
class PublicRecipe:
    """A recipe as others can follow it: it names repositories alone, and vectors that come along with it.

    `vector_files` are the files of those vectors, by their paths beside the recipe, and `licenses` has the license of
    each repository that states one.
    """

    recipe: "DEMConfig"
    vector_files: Mapping[str, Path | str]
    licenses: Mapping[str, str]

    def files(self, beside: Mapping[str, Path]) -> dict[str, Path | str]:
        """Return all files of the recipe: its own, those of its vectors, and the base's, which are `beside`."""
        texts = {**self.recipe.tokenizer_texts(beside), RECIPE_CONFIG: self.recipe.to_json()}
        return {**self.vector_files, **beside, **texts}


def push_recipe(
    recipe: "DEMConfig", repo_id: str, options: PushOptions, *, include_vectors: bool, base_model: str | None
) -> "CommitInfo":
    """Push a recipe; see [`DEMConfig.push_to_hub`]."""
    token = options.get("token")
    public = public_recipe(recipe, include_vectors=include_vectors, base_model=base_model, token=token)
    below = public_below(public.recipe, token=token)
    with scratch_folder() as folder, recipe.base_files(HubOptions(token)) as beside:
        _draw(recipe.search, folder)
        drawn = {path.name: path for path in folder.iterdir()}
        files = {**public.files(beside), **drawn}
        announce(repo_id, files)

        def compose(head: Head) -> Change:
            card = recipe_card(head.repo_id, public.recipe, public.licenses, below=below)
            written = {**files, CARD: render(card, head.read(CARD))}
            return Change(written, merged=frozenset({CARD, PERPLEXITY_PLOT}))

        return push(repo_id, compose, options, "Push the recipe")


def public_recipe(
    recipe: "DEMConfig", *, include_vectors: bool, base_model: str | None, token: str | bool | None
) -> PublicRecipe:
    """Return a recipe as others can follow it. Nothing is written.

    Args:
        recipe ([`DEMConfig`]): The recipe.
        include_vectors (`bool`): Whether vectors that are folders of this machine come along.
        base_model (`str`, *optional*): Hub id of the base, if the base is a folder of this machine.
        token (`str` or `bool`, *optional*): Token to look repositories up with.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the recipe refers to folders of this machine; see
            [`DEMConfig.push_to_hub`].
    """
    base = public_base(recipe.base, base_model, "recipe", token=token)
    records, files = _public_vectors(recipe.vectors, str(base.repo_id), include=include_vectors, token=token)
    public = replace(recipe, base=base, vectors=records)
    return PublicRecipe(public, files, licenses(repositories(public), token=token))


def public_below(recipe: "DEMConfig", *, token: str | bool | None) -> list["DEMConfig"]:
    """Return the recipes below one that everybody can read, from the top down, for its card.

    What is in a private recipe is not told on a card that others see, and neither is what is below it.
    """
    found: list[DEMConfig] = []
    if not recipe.base.source.is_repository:
        return found
    above = recipe
    for inner in recipe.below(HubOptions(token)):
        if is_private(str(above.base.repo_id), token=token):
            break
        found.append(inner)
        above = inner
    return found


def _public_vectors(
    vectors: Sequence[VectorRecord], base: str, *, include: bool, token: str | bool | None
) -> tuple[tuple[VectorRecord, ...], dict[str, Path | str]]:
    """Return the public records of the vectors, and the files of those that come along if `include` is set.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If vectors are folders of this machine, or were, and `include` is not set.
    """
    local = [record for record in vectors if not record.source.is_repository]
    if local and not include:
        refuse(
            ConfigError,
            "This recipe names vectors that are folders of this machine, which nobody else has.",
            [f"'{record.source}'" for record in local],
            "Push them first, and name them by their ids; or let them come along: --include-vectors, in Python "
            "include_vectors=True.",
        )
    names = iter(distinct_names([Path(record.repo_id, record.subfolder) for record in local]))
    records: list[VectorRecord] = []
    files: dict[str, Path | str] = {}
    for record in vectors:
        if record.source.is_repository:
            records.append(record)
            continue
        subfolder = "/".join([VECTORS, *next(names)])
        vector = public_vector(Path(record.repo_id, record.subfolder), base, token=token)
        for name, content in vector.files.items():
            files[f"{subfolder}/{name}"] = content
        records.append(replace(record, repo_id=HERE, commit=None, subfolder=subfolder, sha256=vector.sha256))
    return tuple(records), files


def _draw(search: Mapping[str, Any] | None, folder: Path) -> None:
    """Plot the perplexities before and after the search, if the recipe has both and matplotlib is installed."""
    if not search or not search.get("losses") or not search.get("base_losses"):
        return
    with suppress(MissingDependencyError):
        table = {"base": _perplexities(search["base_losses"]), "this": _perplexities(search["losses"])}
        draw_perplexities(table, "Validation perplexity").savefig(folder / PERPLEXITY_PLOT)


def _perplexities(losses: Mapping[str, float]) -> dict[str, float]:
    return {name: math.exp(loss) for name, loss in losses.items()}
