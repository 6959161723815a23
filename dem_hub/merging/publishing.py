"""Pushing a recipe to the Hub, with its card, the base's tokenizer and a plot, as one commit.

A public recipe refers to repositories only. A vector in a folder of this machine must be pushed first, or comes along
in a subfolder of the recipe's repository; anything else is refused before the first request that writes.
"""

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.errors import ConfigError, MissingDependencyError, refuse
from dem_hub.files.names import CARD, PERPLEXITY_PLOT, RECIPE_CONFIG
from dem_hub.files.scratch import scratch_folder
from dem_hub.files.strict_json import dump_json
from dem_hub.hub.cards import render
from dem_hub.hub.client import HubOptions
from dem_hub.hub.commits import Change, Head, PushOptions, push
from dem_hub.hub.download import side_files
from dem_hub.hub.listing import licenses
from dem_hub.hub.preview import announce
from dem_hub.hub.references import VectorSource
from dem_hub.merging.cards import recipe_card
from dem_hub.merging.coefficients import Coefficient
from dem_hub.merging.records import HERE, VectorRecord
from dem_hub.plotting import plot_perplexities
from dem_hub.vectors.publishing import public_base, public_vector

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

    from dem_hub.merging.config import DEMConfig

# Folder of a recipe's repository for the vectors that come along with it.
VECTORS = "vectors"


@dataclass(frozen=True)
class _PublicVectors:
    """The records of a recipe's vectors as others can follow them, and the files of vectors that come along."""

    records: tuple[VectorRecord, ...]
    files: Mapping[str, Path | str]


def push_recipe(
    recipe: "DEMConfig", repo_id: str, options: PushOptions, *, include_vectors: bool, base_model: str | None
) -> "CommitInfo":
    """Push a recipe; see [`DEMConfig.push_to_hub`]."""
    token = options.get("token")
    base = public_base(recipe.base, base_model, "recipe", token=token)
    base_id = str(base.repo_id)
    vectors = _public_vectors(recipe.vectors, base_id, include=include_vectors, token=token)
    public = replace(recipe, base=base, vectors=vectors.records)
    repositories = [base_id, *(record.repo_id for record in vectors.records if record.repo_id != HERE)]
    stated_licenses = licenses(dict.fromkeys(repositories), token=token)
    with scratch_folder() as folder:
        _draw(recipe.search, folder)
        drawn = {path.name: path for path in folder.iterdir()}
        files = {**vectors.files, **side_files(recipe.base.source, HubOptions(token)), **drawn}
        announce(repo_id, {**files, RECIPE_CONFIG: dump_json(public.to_dict())})

        def compose(head: Head) -> Change:
            card = recipe_card(
                head.repo_id, base_id, _public_coefficients(public, head.repo_id), recipe.search, stated_licenses
            )
            written = {**files, RECIPE_CONFIG: dump_json(public.to_dict()), CARD: render(card, head.read(CARD))}
            return Change(written, merged=frozenset({CARD, PERPLEXITY_PLOT}))

        return push(repo_id, compose, options, "Push the recipe")


def _public_vectors(
    vectors: Iterable[VectorRecord], base: str, *, include: bool, token: str | bool | None
) -> _PublicVectors:
    """Return the public records of the vectors, and the files of those that come along if `include` is set.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If vectors are folders of this machine and `include` is not set, or two have
            the same name.
    """
    records: list[VectorRecord] = []
    files: dict[str, Path | str] = {}
    faults = []
    for record in vectors:
        if not record.source.is_local:
            records.append(record)
            continue
        if not include:
            faults.append(f"'{record.source}'")
            continue
        folder = Path(record.repo_id) / record.subfolder
        subfolder = f"{VECTORS}/{folder.resolve().name}"
        if any(other.subfolder == subfolder for other in records):
            raise ConfigError(f"Two vectors of this recipe are folders called '{folder.name}'. Rename one.")
        vector = public_vector(folder, base, token=token)
        for name, content in vector.files.items():
            files[f"{subfolder}/{name}"] = content
        records.append(replace(record, repo_id=HERE, commit=None, subfolder=subfolder, sha256=vector.sha256))
    if faults:
        refuse(
            ConfigError,
            "This recipe names vectors that are folders of this machine, which nobody else has.",
            faults,
            "Push them first, and name them by their ids; or let them come along: --include-vectors, in Python "
            "include_vectors=True.",
        )
    return _PublicVectors(tuple(records), files)


def _public_coefficients(recipe: "DEMConfig", repo_id: str) -> dict[str, Coefficient]:
    """Return the coefficients by the names that others use; a vector that came along is in the recipe's repository."""
    coefficients = {}
    for record in recipe.vectors:
        owner = repo_id if record.repo_id == HERE else record.repo_id
        coefficients[str(VectorSource(owner, None, record.subfolder))] = record.coefficient
    return coefficients


def _draw(search: Mapping[str, Any] | None, folder: Path) -> None:
    """Plot the perplexities before and after the search, if the recipe has both and matplotlib is installed."""
    if not search or not search.get("losses") or not search.get("base_losses"):
        return
    with suppress(MissingDependencyError):
        plot_perplexities(
            {"base": _perplexities(search["base_losses"]), "this": _perplexities(search["losses"])},
            folder / PERPLEXITY_PLOT,
            "Validation perplexity",
        )


def _perplexities(losses: Mapping[str, float]) -> dict[str, float]:
    return {name: math.exp(loss) for name, loss in losses.items()}
