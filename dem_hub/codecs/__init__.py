"""How a delta is stored. One file a codec: `encode` makes named parts of one tensor's delta, `decode` gives any slice of it back.

A new codec is a file beside these and an entry in `CODECS`; the shared conformance suite then holds it to the rest.
"""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, Protocol

from torch import Tensor

from dem_hub.checkpoint import LazyTensor
from dem_hub.codecs.delta import Delta, add_deltas, to_dense
from dem_hub.codecs.dense import Dense
from dem_hub.codecs.full import Full
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.replace import Replace
from dem_hub.errors import CodecError
from dem_hub.index import Index

__all__ = ["CODECS", "Codec", "Delta", "add_deltas", "get_codec", "to_dense"]


class Codec(Protocol):
    """What every codec does. Its fields are its options; `name` is its entry in `CODECS`."""

    name: ClassVar[str]

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Named parts of one tensor's delta (float32, on any device); `base` and `finetuned` are in their own dtypes."""

    @staticmethod
    def decode(parts: Mapping[str, LazyTensor], base: Tensor, index: Index) -> Delta:
        """The slice `index` of the delta; `base` is that slice of the base's tensor."""


CODECS: dict[str, type[Codec]] = {codec.name: codec for codec in (Dense, LowRank, Full, Replace)}
OFFERED = ("lowrank", "dense")  # what a user chooses between; the others are chosen by the tensor


def get_codec(name: str, options: Mapping[str, Any]) -> Codec:
    """The codec of that name with those options.

    Raises:
        `CodecError`: no such codec, or an option that it does not have.

    Example:

    ```python
    >>> from dem_hub.codecs import get_codec
    >>> get_codec("lowrank", {"rank": 8})
    LowRank(rank=8, energy=None, dtype='float32')

    ```
    """
    if name not in OFFERED:
        raise CodecError(f"There is no codec '{name}'; choose one of {', '.join(OFFERED)}.")
    known = [item.name for item in fields(CODECS[name])]  # type: ignore[arg-type]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise CodecError(f"Codec '{name}' has no option {', '.join(map(repr, unknown))}; it has {', '.join(known)}.")
    return CODECS[name](**options)
