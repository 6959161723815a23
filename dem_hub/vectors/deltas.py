"""The deltas of several vectors on one base, checked together.

A user who names three vectors of another base should read about all three at once, so errors are collected before
one is raised.
"""

from collections.abc import Sequence

from dem_hub.checkpoints.base_model import Base
from dem_hub.codecs.component import StoredDelta
from dem_hub.errors import AdapterError, BaseMismatchError, CheckpointError, CodecError, DemHubError, refuse
from dem_hub.vectors.vector import DistributionVector


def all_deltas(
    vectors: Sequence[DistributionVector], base: Base, *, allow_base_mismatch: bool = False
) -> list[dict[str, StoredDelta]]:
    """Return [`DistributionVector.deltas`] of several vectors. The faults of all vectors are in one error.

    Args:
        vectors (`Sequence[DistributionVector]`): The vectors.
        base ([`Base`]): The base that the deltas are to be added to.
        allow_base_mismatch (`bool`): Accept another base with the same names and shapes.
    """
    deltas: list[dict[str, StoredDelta]] = []
    errors: list[DemHubError] = []
    for vector in vectors:
        try:
            deltas.append(vector.deltas(base, allow_base_mismatch=allow_base_mismatch))
        except (AdapterError, BaseMismatchError, CheckpointError, CodecError) as error:
            errors.append(error)
    if len(errors) > 1:
        refuse(
            type(errors[0]),
            f"{len(errors)} of {len(vectors)} vectors cannot be put on '{base}'.",
            [str(error) for error in errors],
        )
    if errors:
        raise errors[0]
    return deltas
