"""What a vector can be extracted from: two models, and nothing else that a folder may hold."""

import logging
from pathlib import Path

import torch

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.errors import CheckpointError
from dem_hub.files.folders import has_model_weights, is_recipe, lone_vector
from dem_hub.hub.download import Resolved, module_weights

logger = logging.getLogger(__name__)


def refuse_what_is_no_model(base: Resolved, finetuned: Resolved) -> None:
    """Refuse a vector or an adapter on either side, and a recipe as the fine-tune.

    They would otherwise be refused for each of their tensors. A recipe as the base is merged when it is read.

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
    if is_recipe(finetuned.folder):
        raise CheckpointError(
            f"The fine-tune '{finetuned.source}' is a recipe. Make the model of it first: dem-hub merge "
            f"{finetuned.source} -o MODEL."
        )
    if kind := _vector_kind(base.folder):
        raise CheckpointError(
            f"'{base.source}' is {kind}, and a base is a model. Name the model that the fine-tune was trained from."
        )


def warn_of_modules(base: Base, finetuned: Resolved) -> None:
    """Warn of projections and other modules of sentence-transformers that a fine-tune changed.

    A vector has the tensors of the model alone, so these changes are not in it.
    """
    ours = base.module_weights
    for module, files in module_weights(finetuned).items():
        if not files:
            fault = "has no weights in safetensors, so it is not known whether it was trained"
        elif not ours.get(module):
            fault = "has weights, and the base has none for it"
        elif not _have_same_tensors(finetuned.folder / module, base.folder / module):
            fault = "was trained"
        else:
            continue
        logger.warning(
            "The module '%s' of '%s' %s. A vector has no part of it: what is merged has the base's, so copy the folder "
            "'%s' into the merged model if you want the fine-tune's.",
            module,
            finetuned.source,
            fault,
            module,
        )


def _have_same_tensors(folder: Path, other: Path) -> bool:
    mine = Checkpoint(folder)
    theirs = Checkpoint(other)
    return set(mine) == set(theirs) and all(torch.equal(mine.read(name), theirs.read(name)) for name in mine)


def _vector_kind(folder: Path) -> str:
    """Return what a folder holds if it is a vector or an adapter; an empty text if it is a model.

    Trainers such as axolotl put the base's `config.json` beside an adapter, which makes no model of it.
    """
    return lone_vector(folder, is_model=has_model_weights(folder))
