"""The tensors of a fine-tune, matched with those of its base: by name, and by content where one side wrote out a tied
embedding.

Everything that does not fit is found from the headers and listed in one error. Nothing is cut, and nothing is skipped.
"""

from dataclasses import dataclass
from pathlib import Path

from dem_hub.checkpoints.model_config import read_config
from dem_hub.checkpoints.reader import Checkpoint, TensorSource
from dem_hub.errors import CheckpointError, refuse


@dataclass(frozen=True)
class Pair:
    """One tensor on both sides. `rows` is the number of rows that only the fine-tune has."""

    base_key: str
    finetuned_key: str
    rows: int


def match_tensors(base: Checkpoint, finetuned: TensorSource) -> list[Pair]:
    """Pair the tensors of both sides.

    Raises:
        `CheckpointError`: tensors have no partner, or one of another shape or dtype; all of them are listed.
    """
    faults = []
    pairs = []
    for key in sorted(set(base) | set(finetuned)):
        if key not in base:
            # A tensor that is written out in the fine-tune and tied in the base is nothing new.
            if _find_twin(finetuned, key, base) is None:
                faults.append(f"'{key}' {list(finetuned[key].shape)} is in the fine-tune only")
            continue
        finetuned_key = key
        if key not in finetuned:
            # Written out in the base and tied in the fine-tune: it follows the tensor that it is tied to.
            finetuned_key = _find_twin(base, key, finetuned) or key
        if finetuned_key not in finetuned:
            faults.append(f"'{key}' {list(base[key].shape)} is in the base only")
            continue
        fault = _find_fault(base, key, finetuned, finetuned_key)
        if fault:
            faults.append(fault)
            continue
        shape = base[key].shape
        new_rows = 0
        if finetuned[finetuned_key].shape != shape:
            new_rows = finetuned[finetuned_key].shape[0] - shape[0]
        pairs.append(Pair(key, finetuned_key, new_rows))
    if faults:
        refuse(
            CheckpointError,
            f"'{finetuned.path}' is not a fine-tune of '{base.path}': {len(faults)} tensors do not fit.",
            faults,
            "Name the base that this model was trained from. "
            "An untied or differently built model has no vector on this base.",
        )
    return pairs


def _find_fault(base: Checkpoint, key: str, finetuned: TensorSource, finetuned_key: str) -> str:
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


def _has_new_rows(base: Checkpoint, key: str, finetuned: TensorSource, finetuned_key: str) -> bool:
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


def _find_twin(checkpoint: TensorSource, key: str, other: TensorSource) -> str | None:
    """Return another tensor of the checkpoint with the same bits that the other side has too: the one that `key` is
    tied to.
    """
    for name in checkpoint:
        if name != key and name in other and checkpoint.is_copy(name, key):
            return name
    return None
