"""What a vector can be extracted from: two models, and nothing else that a folder may hold."""

from pathlib import Path

from dem_hub.errors import CheckpointError
from dem_hub.files.folders import has_model_weights, is_recipe, lone_vector
from dem_hub.hub.download import Resolved


def refuse_what_is_no_model(base: Resolved, finetuned: Resolved) -> None:
    """Refuse a recipe, a vector or an adapter on either side, which would otherwise be refused for each of its tensors.

    Args:
        base, finetuned ([`Resolved`]): The two sides.

    Raises:
        `CheckpointError`: If one of them is no model.
    """
    if kind := _vector_kind(finetuned.folder):
        raise CheckpointError(
            f"'{finetuned.source}' is {kind} already, which can be used as it is: dem-hub merge BASE --vector "
            f"{finetuned.source}=COEFFICIENT -o DIR, in Python vectors={{...}}."
        )
    for role, side in (("base", base), ("fine-tune", finetuned)):
        if is_recipe(side.folder):
            raise CheckpointError(
                f"The {role} '{side.source}' is a recipe. Make the model of it first: dem-hub merge {side.source} "
                "-o MODEL."
            )
    if kind := _vector_kind(base.folder):
        raise CheckpointError(
            f"'{base.source}' is {kind}, and a base is a model. Name the model that the fine-tune was trained from."
        )


def _vector_kind(folder: Path) -> str:
    """Return what a folder holds if it is a vector or an adapter; an empty text if it is a model.

    Trainers such as axolotl put the base's `config.json` beside an adapter, which makes no model of it.
    """
    return lone_vector(folder, is_model=has_model_weights(folder))
