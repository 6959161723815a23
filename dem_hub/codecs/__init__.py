"""How a delta is stored. One file a codec: `encode` makes named parts of one tensor's delta, `decode` gives any slice of it back.

`lrsign`, `sign`, `random`, `int4`, `int8`, `nf4` are unbiased: what they add to a delta is noise, which a sum of vectors averages out.
`lowrank` is biased: it leaves a part of the delta out. `dense` and `exact` keep all of it.

A new codec is a file beside these and an entry in `CODECS`; the shared conformance suite then holds it to the rest.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Protocol, TypeVar

from torch import Tensor

from dem_hub.checkpoints.lazy import LazyTensor
from dem_hub.codecs.delta import Delta, add_deltas, to_dense
from dem_hub.codecs.dense import Dense
from dem_hub.codecs.exact import Exact
from dem_hub.codecs.integer import Int4, Int8
from dem_hub.codecs.layout import Layout
from dem_hub.codecs.lowrank import LowRank
from dem_hub.codecs.lrsign import LRSign
from dem_hub.codecs.nf4 import NF4
from dem_hub.codecs.random import Random
from dem_hub.codecs.replace import Replace
from dem_hub.codecs.sign import Sign
from dem_hub.codecs.whole import Full
from dem_hub.errors import CodecError
from dem_hub.numerics.slices import Index

_Made = TypeVar("_Made")

__all__ = ["CODECS", "Codec", "Delta", "add_deltas", "get_codec", "to_dense"]


class Codec(Protocol):
    """What every codec does. Its fields are its options; `name` is its entry in `CODECS`."""

    name: ClassVar[str]

    def encode(self, delta: Tensor, base: Tensor, finetuned: Tensor) -> dict[str, Tensor]:
        """Named parts of one tensor's delta (float32, on any device); `base` and `finetuned` are in their own dtypes."""

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """The parts of a tensor of this shape."""

    def decode(self, parts: Mapping[str, LazyTensor], shape: tuple[int, ...], index: Index, base: LazyTensor) -> Delta:
        """The slice `index` of the delta of a tensor of this shape, on the device that the parts and the base's tensor are read to."""


OFFERED = {codec.name: codec for codec in (LRSign, Sign, Random, Int4, Int8, NF4, LowRank, Exact, Dense)}  # to a user
CODECS: dict[str, type[Codec]] = OFFERED | {
    codec.name: codec for codec in (Full, Replace)
}  # these are chosen by the tensor


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
        raise CodecError(f"There is no codec '{name}'; choose one of auto, {', '.join(OFFERED)}.")
    return make_codec(name, options)


def make_codec(name: str, options: Mapping[str, Any]) -> Codec:
    """The codec that a file names, those that no user chooses included; see [`get_codec`]."""
    return with_options(CODECS[name], options)


def with_options(kind: Callable[..., _Made], options: Mapping[str, Any]) -> _Made:
    """A codec, or what chooses one, with its options.

    Raises:
        `CodecError`: an option that it does not have, or that is of another type.
    """
    name, known = kind.name, [item.name for item in fields(kind)]  # type: ignore[attr-defined, arg-type]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise CodecError(
            f"Codec '{name}' has no option {', '.join(map(repr, unknown))}; it has {', '.join(known) or 'none'}."
        )
    try:
        return kind(**options)
    except TypeError as error:
        raise CodecError(f"Codec '{name}' cannot take the options {dict(options)} ({error}).") from error


def codec_options(codec: object) -> dict[str, Any]:
    """The options of a codec, as a file keeps them."""
    return {name: value for name, value in vars(codec).items() if value is not None}
