"""The tensors of a fine-tune, matched with those of its base: by name, by place in the model where names differ, and by
content where one side wrote out a tied embedding.

Everything that does not fit is found from the headers and listed in one error. Nothing is cut, and nothing is skipped.
"""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.model_config import read_config
from dem_hub.checkpoints.reader import Tensors, TensorSource
from dem_hub.errors import CheckpointError, refuse
from dem_hub.files.shown import shown
from dem_hub.vectors.partners import Partners, find_partners

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """One tensor on both sides. `rows` is the number of rows that only the fine-tune has."""

    base_key: str
    finetuned_key: str
    rows: int


def match_tensors(base: Base, finetuned: TensorSource) -> list[Pair]:
    """Pair the tensors of both sides.

    Raises:
        `CheckpointError`: tensors have no partner, or one of another shape or dtype; all of them are listed.
    """
    partners = find_partners(base, finetuned)
    faults = []
    pairs = []
    checkpoint = base.checkpoint
    for key in sorted(checkpoint):
        if key in partners.carried:
            continue
        # A tensor that is written out in the base and tied in the fine-tune follows the tensor that it is tied to.
        name = key if key in partners.keys else _find_twin(checkpoint, key, partners.keys)
        if name is None:
            faults.append(f"'{key}' {list(checkpoint[key].shape)} is in the base only")
            continue
        finetuned_key = partners.keys[name]
        fault = _find_fault(checkpoint, key, finetuned, finetuned_key)
        if fault:
            faults.append(fault)
            continue
        shape = checkpoint[key].shape
        new_rows = 0
        if finetuned[finetuned_key].shape != shape:
            new_rows = finetuned[finetuned_key].shape[0] - shape[0]
        pairs.append(Pair(key, finetuned_key, new_rows))
    paired = frozenset(partners.keys.values())
    alone = set(finetuned) - paired - partners.dropped
    # A tensor that is written out in the fine-tune and tied in the base is nothing new.
    new = [key for key in alone if _find_twin(finetuned, key, paired) is None]
    faults += [f"'{key}' {list(finetuned[key].shape)} is in the fine-tune only" for key in new]
    if faults:
        refuse(
            CheckpointError,
            f"'{finetuned.path}' is not a fine-tune of '{checkpoint.path}': {len(faults)} tensors do not fit.",
            sorted(faults),
            f"Name the base that this model was trained from. {_reason(base, finetuned)}",
        )
    _log_unpaired(partners)
    return pairs


def _reason(base: Base, finetuned: TensorSource) -> str:
    """Return a sentence that says why tensors of two models may not fit."""
    classes = [read_config(folder).get("architectures") for folder in (base.folder, finetuned.path)]
    if None in classes or classes[0] == classes[1]:
        return "An untied or differently built model has no vector on this base."
    return (
        f"The architectures are {shown(classes[0])} in the base and {shown(classes[1])} in the fine-tune: a vector has "
        "no place for a head that the base lacks. Save the base with the head that training started from, and name "
        "that folder."
    )


def _log_unpaired(partners: Partners) -> None:
    """Say in one line each which tensors have no part in the vector."""
    if partners.carried:
        logger.warning(
            "%d tensors of the base are in no model that transformers makes of the fine-tune ('%s'); they stay as "
            "the base has them.",
            len(partners.carried),
            min(partners.carried),
        )
    if partners.dropped:
        logger.warning(
            "%d tensors of the fine-tune are dropped by transformers when it loads it ('%s'), and left out.",
            len(partners.dropped),
            min(partners.dropped),
        )


def _find_fault(base: Tensors, key: str, finetuned: TensorSource, finetuned_key: str) -> str:
    """Return why two tensors are no pair, or an empty text if they are one."""
    ours = base[key]
    theirs = finetuned[finetuned_key]
    if ours.shape != theirs.shape and not _has_new_rows(base, key, finetuned, finetuned_key):
        return f"'{key}' is {list(ours.shape)} in the base and {list(theirs.shape)} in the fine-tune"
    dtypes = f"'{key}' is {ours.dtype} in the base and {theirs.dtype} in the fine-tune"
    if ours.torch_dtype.is_floating_point != theirs.torch_dtype.is_floating_point:
        return dtypes
    for dtype in (ours.torch_dtype, theirs.torch_dtype):
        if dtype.is_floating_point and dtype.itemsize == 1:
            return f"{dtypes}: quantised"
    return ""


def _has_new_rows(base: Tensors, key: str, finetuned: TensorSource, finetuned_key: str) -> bool:
    """Return whether the fine-tune's tensor is the base's with more rows, as of a vocabulary that grew.

    If both configs tell the size of the vocabulary, the rows must be those of the vocabulary.
    """
    ours = base[key].shape
    theirs = finetuned[finetuned_key].shape
    if not base[key].torch_dtype.is_floating_point or not ours or len(ours) != len(theirs):
        return False
    if ours[1:] != theirs[1:] or theirs[0] <= ours[0]:
        return False
    vocabularies = (vocabulary_size(base.path), vocabulary_size(finetuned.path))
    return None in vocabularies or vocabularies == (ours[0], theirs[0])


def vocabulary_size(folder: Path) -> int | None:
    """Return the size of a model's vocabulary, or `None` if its config does not tell it."""
    config = read_config(folder)
    return (config.get("text_config") or config).get("vocab_size")


def _find_twin(checkpoint: TensorSource, key: str, names: Collection[str]) -> str | None:
    """Return another tensor of the checkpoint with the same bits that has a partner: the one that `key` is tied to."""
    for name in checkpoint:
        if name != key and name in names and checkpoint.is_copy(name, key):
            return name
    return None
