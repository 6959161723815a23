"""Recipes on top of each other: the base of a recipe may be a recipe, from the vectors of an earlier round.

They end at a model. A recipe that is its own base, by whatever way round, is refused by name, and so are more of them
than anybody means: each is merged at every read of the one above it.
"""

from dem_hub.errors import ConfigError
from dem_hub.hub.download import Resolved

# Recipes below a recipe, at most. Published runs have up to five rounds (METIS, arXiv 2606.16501).
MOST_ROUNDS = 8

# Recipes by where they were found, from the top down.
Chain = tuple[str, ...]

# What has no folder yet: a recipe or a vector that is being made.
UNSAVED: Chain = ("what is being made",)


def place_of(recipe: Resolved) -> str:
    """Return where a recipe was found, in one spelling: the folder, or the repository at its commit."""
    if recipe.commit is None:
        return str(recipe.folder.resolve())
    subfolder = f"//{recipe.source.subfolder}" if recipe.source.subfolder else ""
    return f"{recipe.source.repo_id}@{recipe.commit}{subfolder}"


def chain_with(recipe: Resolved, above: Chain) -> Chain:
    """Return the chain with a recipe that is the base of its last one.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the recipe is in the chain already, or the chain is too long.
    """
    place = place_of(recipe)
    if place in above:
        circle = [*above[above.index(place) :], place]
        steps = ", which is based on ".join(f"'{name}'" for name in circle[1:])
        raise ConfigError(
            f"The recipe '{place}' is based on itself: it is based on {steps}. Name a model as the base of one of "
            "them, or an export of the recipe that was meant."
        )
    if len(above) > MOST_ROUNDS:
        raise ConfigError(
            f"'{place}' is a recipe below {len(above)} others ('{above[0]}' is the first), and a recipe has at most "
            f"{MOST_ROUNDS} below it. Export one of them, and name the model as the base: dem-hub merge {place} -o "
            "MODEL."
        )
    return (*above, place)
