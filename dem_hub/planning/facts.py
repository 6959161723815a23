"""What the headers of a base and of vectors say about the size of their merge."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dem_hub.merging.merged_base import MergedTensors
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.terms import Term
from dem_hub.models.estimate import quantizing_memory, rounds_of
from dem_hub.models.planned import PlannedModel
from dem_hub.planning.bounds import PassShape

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Facts:
    """The size of a model and of its vectors.

    `tensors` and `parameters` are counts: of the base's tensors, and of the elements of the merged model. Everything
    else is in bytes: the base's tensors on disk, its `largest` one in float32, the vectors' files, and what is still to
    be downloaded. `quantizing` is what quantizing the base as in training takes on the CPU, and `decoded` the number of
    vectors whose deltas are not all factors.
    """

    tensors: int
    parameters: int
    base_bytes: int
    largest: int
    vector_bytes: int
    downloads: int
    quantizing: int
    decoded: int

    @classmethod
    def of(cls, planned: PlannedModel) -> "Facts":
        """Add up the headers of a planned model."""
        merge = planned.merge
        elements = [math.prod(merge.shape(name)) for name in merge.base]
        return cls(
            tensors=len(merge.base),
            parameters=sum(elements),
            base_bytes=sum(info.nbytes for info in merge.base.values()),
            largest=_FLOAT32_BYTES * max(elements, default=0),
            vector_bytes=_vector_bytes(planned.opened),
            downloads=sum(remote.nbytes for remote in planned.opened.remotes),
            quantizing=max(map(quantizing_memory, rounds_of(merge))),
            decoded=len({term.sha256 for term in merge.terms if not _is_factored(term)}),
        )


def pass_shape(config: "PretrainedConfig", planned: PlannedModel) -> PassShape:
    """Return the sizes that decide about the memory of a forward pass."""
    text = config.get_text_config()
    architecture = planned.opened.base.architecture
    rows_of_tokens = frozenset[str]() if architecture is None else architecture.vocabulary
    merge = planned.merge
    inner = 0
    for name in merge.base:
        shape = merge.shape(name)
        if len(shape) > 1 and name not in rows_of_tokens:
            inner = max(inner, *shape)
    return PassShape(int(getattr(text, "vocab_size", 0) or 0), int(getattr(text, "hidden_size", 0) or 0), inner)


def _is_factored(term: Term) -> bool:
    return all(stored.is_factored for stored in term.deltas.values())


def _vector_bytes(opened: OpenedRecipe) -> int:
    """Return the bytes of the vectors of a recipe, and of those of a base that is a recipe."""
    total = sum(vector.nbytes for vector in opened.vectors)
    if isinstance(opened.base.checkpoint, MergedTensors):
        total += _vector_bytes(opened.base.checkpoint.opened)
    return total
