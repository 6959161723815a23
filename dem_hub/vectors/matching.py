"""Which tensor of a fine-tune belongs to which of its base: by name, and by content where one side wrote a tied embedding out.

All that does not fit is found from the headers and listed in one error: nothing is cut, and nothing is skipped.
"""

from dataclasses import dataclass
from pathlib import Path

from dem_hub.checkpoints.model_config import read_config
from dem_hub.checkpoints.reader import Checkpoint, TensorSource
from dem_hub.errors import CheckpointError, refuse


@dataclass(frozen=True)
class Pair:
    """One tensor on both sides; `rows` counts those that only the fine-tune has."""

    base_key: str
    finetuned_key: str
    rows: int


def match_tensors(base: Checkpoint, finetuned: TensorSource) -> list[Pair]:
    """Pair the tensors of both sides by name, or refuse, naming each one that has no partner or another shape."""
    faults, pairs = [], []
    vocabularies = vocabulary_size(base.path), vocabulary_size(finetuned.path)
    for key in sorted(set(base) | set(finetuned)):
        finetuned_key = key
        if key not in finetuned:  # written out in the base, tied in the fine-tune: it follows the tensor it is tied to
            finetuned_key = _twin(base, key, finetuned) or key
        if key not in base:
            if _twin(finetuned, key, base) is None:
                faults.append(f"'{key}' {list(finetuned[key].shape)} is in the fine-tune only")
            continue  # written out in the fine-tune, tied in the base: nothing of its own
        if finetuned_key not in finetuned:
            faults.append(f"'{key}' {list(base[key].shape)} is in the base only")
            continue
        ours, theirs = base[key].shape, finetuned[finetuned_key].shape
        grown = len(ours) == len(theirs) > 0 and ours[1:] == theirs[1:] and theirs[0] > ours[0]
        grown = (
            grown
            and base[key].torch_dtype.is_floating_point
            and (None in vocabularies or vocabularies == (ours[0], theirs[0]))
        )
        if ours != theirs and not grown:
            faults.append(f"'{key}' is {list(ours)} in the base and {list(theirs)} in the fine-tune")
        elif base[key].torch_dtype.is_floating_point != finetuned[finetuned_key].torch_dtype.is_floating_point:
            faults.append(
                f"'{key}' is {base[key].dtype} in the base and {finetuned[finetuned_key].dtype} in the fine-tune"
            )
        elif any(
            dtype.is_floating_point and dtype.itemsize == 1
            for dtype in (base[key].torch_dtype, finetuned[finetuned_key].torch_dtype)
        ):
            faults.append(
                f"'{key}' is {base[key].dtype} in the base and {finetuned[finetuned_key].dtype} in the fine-tune: quantised"
            )
        else:
            pairs.append(Pair(key, finetuned_key, theirs[0] - ours[0] if grown else 0))
    if faults:
        refuse(
            CheckpointError,
            f"'{finetuned.path}' is not a fine-tune of '{base.path}': {len(faults)} tensors do not fit.",
            faults,
            "Name the base that this model was trained from. An untied or differently built model has no vector on this base.",
        )
    return pairs


def vocabulary_size(folder: Path) -> int | None:
    """The size of a model's vocabulary, where its config says."""
    config = read_config(folder)
    return (config.get("text_config") or config).get("vocab_size")


def _twin(checkpoint: TensorSource, key: str, other: TensorSource) -> str | None:
    """Another tensor of the checkpoint with the same bits, known to the other side too: what `key` is tied to."""
    return next((name for name in checkpoint if name != key and name in other and checkpoint.is_copy(name, key)), None)
