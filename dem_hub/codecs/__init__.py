"""How a delta is stored.

Each codec has one file: `encode` makes named parts of one tensor's delta, `decode` gives any slice of it back.

`lrsign`, `sign`, `random`, `int4`, `int8` and `nf4` are unbiased: what they add to a delta is noise, which a sum of
vectors averages out. `lowrank` is biased: it leaves a part of the delta out. `dense` and `exact` keep all of it.
`auto` chooses among them.

A new codec is a file beside these and an entry in `listing.OFFERED`; the shared conformance suite then holds it to
the rest.

The names below are loaded when they are first used, so that `listing` can be imported without torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dem_hub.codecs.codec import Codec
    from dem_hub.codecs.delta import Delta, add_deltas, to_dense
    from dem_hub.codecs.registry import CODECS, get_codec

_HOMES = {
    "CODECS": "dem_hub.codecs.registry",
    "Codec": "dem_hub.codecs.codec",
    "Delta": "dem_hub.codecs.delta",
    "add_deltas": "dem_hub.codecs.delta",
    "get_codec": "dem_hub.codecs.registry",
    "to_dense": "dem_hub.codecs.delta",
}

__all__ = ["CODECS", "Codec", "Delta", "add_deltas", "get_codec", "to_dense"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'dem_hub.codecs' has no attribute '{name}'")
