"""Check that a vector fits a base: the same tensor names and shapes, and the base it was extracted from. Check that its
tensors can be read at all.

A local base is identified by its fingerprint. For a base on the Hub the commit is compared; if that differs, the
digests of two small tensors are fetched, so that another model is rejected before gigabytes are downloaded. The
fingerprint is compared after the download.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.fingerprint import agree
from dem_hub.codecs.exact import Exact
from dem_hub.codecs.whole import Replace
from dem_hub.errors import BaseMismatchError, CheckpointError, refuse
from dem_hub.hub.hashes import short_hash
from dem_hub.vectors.config import VectorConfig

if TYPE_CHECKING:
    from dem_hub.vectors.vector import DistributionVector


def check_weights(vector: "DistributionVector") -> None:
    """Refuse a vector whose weights are still on the Hub. In the stand-in of its file all tensors are zeros.

    Raises:
        `CheckpointError`: If the vector was opened with `describe`, and its weights were not on this machine.
    """
    if vector.remote is not None:
        raise CheckpointError(
            f"Only the headers of '{vector.name}' are on this machine, because `DistributionVector.describe` opened it, "
            "so its tensors cannot be read. Open it with `DistributionVector.from_pretrained`."
        )


def check_base(name: str, config: VectorConfig, base: Base, *, allow_mismatch: bool = False) -> None:
    """Refuse a vector on a base that it does not belong to.

    Args:
        name (`str`): The vector's name, for error messages.
        config ([`VectorConfig`]): The vector's config.
        base ([`Base`]): The base that the vector is to be put on.
        allow_mismatch (`bool`): Accept another base with the same names and shapes.

    Raises:
        `BaseMismatchError`: If shapes differ (all of them are listed), or if it is another base or another revision
            (the first tensor that differs is named).
    """
    # The base that a recipe or a store was made for is checked where those are opened: merging/opening.py,
    # models/attached.py (`switch`) and vectors/store.py.
    remedy = f"Put it on the base it was made from: '{config.base}'."
    faults = _misfits(config, base)
    if faults:
        refuse(BaseMismatchError, f"The vector '{name}' does not fit the base '{base}'.", faults, remedy)
    if allow_mismatch:
        _check_exact(config, base, remedy)
        return
    if not base.remotes:
        if base.is_recorded(config.base):
            return
        different = _first_difference(config, base, sorted(config.tensors))
        identity = f"fingerprint {short_hash(base.fingerprint)}"
    else:
        if (config.base.repo_id, config.base.commit) == (base.source.repo_id, base.commit):
            return
        different = _first_difference(config, base, _cheapest_tensors(config, base))
        if different is None:
            return  # it may be the same base: the fingerprint is compared once the weights are here
        identity = "still on the Hub"
    if different is None:
        where = "A tensor that this vector does not change differs"
    else:
        where = f"The first tensor that differs is '{different}'"
    raise BaseMismatchError(
        f"The vector '{name}' was made from '{config.base}' (fingerprint {short_hash(config.base.fingerprint)}), "
        "and this base is "
        f"'{base}' ({identity}): another model, or another revision of it. {where}. {remedy} "
        "To merge or load it on this one all the same, pass --allow-base-mismatch, in Python "
        "allow_base_mismatch=True; a search takes no other base."
    )


def _misfits(config: VectorConfig, base: Base) -> list[str]:
    """Return one line for each tensor of the vector that the base lacks, or has in another shape or kind of dtype."""
    faults = []
    for key, record in sorted(config.tensors.items()):
        info = base.checkpoint.get(key)
        if info is None:
            faults.append(f"'{key}' {list(record.shape)} is not in this base")
        elif info.shape != record.shape:
            faults.append(f"'{key}' is {list(record.shape)} in the vector and {list(info.shape)} in this base")
        elif not info.torch_dtype.is_floating_point and record.codec != Replace.name:
            faults.append(f"'{key}' is {info.dtype} in this base, and the vector has a delta for it ({record.codec})")
    return faults


def _check_exact(config: VectorConfig, base: Base, remedy: str) -> None:
    """Refuse tensors of the codec 'exact' on another base: they are stored as steps from the bits of their own base."""
    if base.remotes:
        return  # reading the tensors would download them; checked again once they are here
    other = []
    for key, record in config.tensors.items():
        if record.codec == Exact.name and not agree(base.digest(key), record.base):
            other.append(f"'{key}'")
    if other:
        refuse(
            BaseMismatchError,
            f"The codec 'exact' has only steps from its own base, and '{base}' is another.",
            other,
            remedy,
        )


def _first_difference(config: VectorConfig, base: Base, keys: Iterable[str]) -> str | None:
    """Return the first of some tensors whose digest is known, and not the one that the vector recorded."""
    for key in keys:
        digest = base.digest(key)
        if digest is not None and not agree(digest, config.tensors[key].base):
            return key
    return None


def _cheapest_tensors(config: VectorConfig, base: Base) -> list[str]:
    """Return the smallest tensor and the smallest matrix that the vector changes: the cheapest tensors that tell
    two bases apart.

    The smallest tensor is often a norm, which two revisions of a base may share, so a matrix is compared too.
    """
    sizes = {name: base.checkpoint[name].nbytes for name in sorted(config.tensors)}
    matrices = [name for name in sizes if len(base.checkpoint[name].shape) > 1]
    cheapest = [min(names, key=sizes.__getitem__) for names in (list(sizes), matrices) if names]
    return list(dict.fromkeys(cheapest))  # a vector of matrices alone has the same tensor twice
