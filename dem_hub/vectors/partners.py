"""Which tensor of a fine-tune is which of its base, where the names differ, and which tensors only one side needs.

A base is often an old repository, and a fine-tune was saved by today's transformers: without the prefix on one side
(GPT-2), with `gamma` and `beta` (BERT), under the names in memory (a gathered state dict). Both names lead to one
place in the model, and transformers' own loader says which. It says as well what a model has no place for.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.key_names import ignored_keys, match_keys
from dem_hub.checkpoints.model_building import build
from dem_hub.checkpoints.model_config import read_config
from dem_hub.checkpoints.reader import TensorSource
from dem_hub.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Partners:
    """The tensors of both sides.

    * `keys` has the fine-tune's key for each of the base's keys that has a partner.
    * `carried` are keys of the base that the fine-tune's model has no place for: the base's tensors stay as they are.
    * `dropped` are keys of the fine-tune that transformers drops without a word.
    """

    keys: Mapping[str, str]
    carried: frozenset[str] = field(default_factory=frozenset)
    dropped: frozenset[str] = field(default_factory=frozenset)


def find_partners(base: Base, finetuned: TensorSource) -> Partners:
    """Pair the tensors of both sides by name, and those that remain by their place in the model.

    Args:
        base ([`Base`]): The base.
        finetuned ([`TensorSource`]): The fine-tune's tensors, by their names on disk.
    """
    keys = {key: key for key in base.checkpoint if key in finetuned}
    ours = [key for key in base.checkpoint if key not in keys]
    theirs = [key for key in finetuned if key not in keys]
    if not (ours or theirs) or base.architecture is None:
        return Partners(keys)
    model = _build_as(base, read_config(finetuned.path).get("architectures") or [])
    # All keys are matched at once, because the number of an expert is its place among all of them.
    matched_ours = match_keys(model, base.checkpoint)
    matched_theirs = match_keys(model, finetuned)
    their_key = {matched_theirs.places[key]: key for key in theirs if key in matched_theirs.places}
    for key in ours:
        place = matched_ours.places.get(key)
        if place in their_key:
            keys[key] = their_key[place]
    carried = matched_ours.unused.intersection(ours)
    dropped = ignored_keys(model, matched_theirs.unused.intersection(theirs))
    return Partners(keys, carried, dropped)


def _build_as(base: Base, class_names: Iterable[str]) -> "PreTrainedModel":
    """Build the base's model as the class that a fine-tune names, or as its own class if it is no class of it."""
    for name in class_names:
        try:
            return build(base.folder, name)
        except CheckpointError:
            continue
    return build(base.folder)
