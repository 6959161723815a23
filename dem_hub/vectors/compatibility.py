"""Whether a vector belongs on a base: the names and shapes of its tensors, and then that it is the very base it was made from.

A base that is on this machine is known by its fingerprint. Of one that is still on the Hub the commit may be enough; where it is not, the few
bytes of two tensors tell another model before gigabytes of it come down, and the fingerprint is compared once they have.
"""

from collections.abc import Iterable, Iterator

from dem_hub.checkpoints.base_model import Base
from dem_hub.codecs.exact import Exact
from dem_hub.codecs.whole import Replace
from dem_hub.errors import BaseMismatchError, refuse
from dem_hub.hub.hashes import short_hash
from dem_hub.vectors.config import VectorConfig


def check_base(name: str, config: VectorConfig, base: Base, *, allow_mismatch: bool = False) -> None:
    """Refuse a vector on a base that it does not belong to.

    Args:
        name (`str`): what the vector is called.
        config ([`VectorConfig`]): the vector's.
        base ([`Base`]): the base it shall go on.
        allow_mismatch (`bool`): take another base with the same names and shapes.

    Raises:
        `BaseMismatchError`: other shapes, all of which are listed; or another base or revision, with the first tensor that differs.
    """
    remedy = f"Put it on the base it was made from: '{config.base}'."
    faults = _misfits(config, base)
    if faults:
        refuse(BaseMismatchError, f"The vector '{name}' does not fit the base '{base}'.", faults, remedy)
    if allow_mismatch:
        exact = (key for key, record in config.tensors.items() if record.codec == Exact.name)
        other = [f"'{key}'" for key in _differences(config, base, exact if base.remote is None else ())]
        if other:
            refuse(
                BaseMismatchError,
                f"The codec 'exact' has only steps from its own base, and '{base}' is another.",
                other,
                remedy,
            )
        return
    if base.remote is None:
        same, asked, seen = (
            config.base.fingerprint == base.fingerprint,
            sorted(config.tensors),
            f"fingerprint {short_hash(base.fingerprint)}",
        )
    else:
        same = (config.base.repo_id, config.base.commit) == (base.source.repo_id, base.commit)
        asked, seen = _telling(config, base), "still on the Hub"
    different = None if same else next(_differences(config, base, asked), None)
    if same or (base.remote is not None and different is None):
        return
    where = (
        f"The first tensor that differs is '{different}'"
        if different
        else "A tensor that this vector does not change differs"
    )
    raise BaseMismatchError(
        f"The vector '{name}' was made from '{config.base}' (fingerprint {short_hash(config.base.fingerprint)}), and this base is "
        f"'{base}' ({seen}): another model, or another revision of it. {where}. {remedy} "
        "To merge or load it on this one all the same, pass --allow-base-mismatch, in Python allow_base_mismatch=True; a search takes no other base."
    )


def _misfits(config: VectorConfig, base: Base) -> list[str]:
    faults, tensors = [], base.checkpoint
    for key, record in sorted(config.tensors.items()):
        if key not in tensors:
            faults.append(f"'{key}' {list(record.shape)} is not in this base")
        elif tensors[key].shape != record.shape:
            faults.append(f"'{key}' is {list(record.shape)} in the vector and {list(tensors[key].shape)} in this base")
        elif not tensors[key].torch_dtype.is_floating_point and record.codec != Replace.name:
            faults.append(
                f"'{key}' is {tensors[key].dtype} in this base, and the vector has a delta for it ({record.codec})"
            )
    return faults


def _differences(config: VectorConfig, base: Base, names: Iterable[str]) -> Iterator[str]:
    return (key for key in names if base.digest(key) != config.tensors[key].base)


def _telling(config: VectorConfig, base: Base) -> list[str]:
    """The smallest tensor and the smallest matrix that the vector changes: what is quickest to fetch of a base, to know it by."""
    sizes = {name: base.checkpoint[name].nbytes for name in sorted(config.tensors)}
    matrices = [name for name in sizes if len(base.checkpoint[name].shape) > 1]
    return list(dict.fromkeys(min(names, key=sizes.__getitem__) for names in (list(sizes), matrices) if names))
