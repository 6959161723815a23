"""Opening a base: the checkpoint of a model, or a recipe, whose tensors are merged when they are read.

A recipe is merged by a folder above this one. So its module is named here and not imported, and is loaded for a recipe
alone: vectors are extracted against a recipe, and a recipe is made of vectors.
"""

from importlib import import_module

from dem_hub.checkpoints.base_model import Base
from dem_hub.files.folders import is_recipe
from dem_hub.hub.download import Resolved

# The module with `open_round`, which opens a recipe as a base.
_RECIPES = "dem_hub.merging.opening"


def open_base(resolved: Resolved) -> Base:
    """Open what was found as a base.

    Args:
        resolved ([`Resolved`]): The folder of a model or of a recipe. What a recipe names is found with its options.

    Raises:
        [`~dem_hub.errors.NotFoundError`]: If there is no checkpoint.
        [`~dem_hub.errors.CheckpointError`]: If it is damaged, or pickled.
        [`~dem_hub.errors.DemHubError`]: What opening a recipe raises.
    """
    if not is_recipe(resolved.folder):
        return Base(resolved)
    base: Base = import_module(_RECIPES).open_round(resolved)
    return base
