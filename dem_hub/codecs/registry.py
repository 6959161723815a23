"""Codecs by their names: those that a user chooses, and those that only a file names."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from dem_hub.codecs.auto.budget import Auto
from dem_hub.codecs.auto.encoder import AutoEncoder
from dem_hub.codecs.codec import Codec
from dem_hub.codecs.encoder import CodecEncoder, Encoder
from dem_hub.codecs.listing import AUTO, INTERNAL, OFFERED, list_codecs
from dem_hub.errors import CodecError


def _load_class(home: str) -> type[Codec]:
    module, _, name = home.rpartition(".")
    loaded: type[Codec] = getattr(import_module(f"dem_hub.codecs.{module}"), name)
    return loaded


CODECS: dict[str, type[Codec]] = {name: _load_class(home) for name, home in {**OFFERED, **INTERNAL}.items()}


def get_codec(name: str, options: Mapping[str, Any]) -> Codec:
    """Return the codec of this name with these options.

    Args:
        name (`str`): one of the codecs that a user may choose, but for `"auto"`, which is none itself.
        options (`Mapping[str, Any]`): its options; the others have their defaults.

    Raises:
        `CodecError`: there is no such codec, or it has no such option.

    Example:

    ```python
    >>> from dem_hub.codecs import get_codec
    >>> get_codec("lowrank", {"rank": 8})
    LowRank(rank=8, energy=None, dtype='float32')

    ```
    """
    if name not in OFFERED:
        raise CodecError(f"There is no codec '{name}'; choose one of {AUTO}, {', '.join(OFFERED)}.")
    return make_codec(name, options)


def make_codec(name: str, options: Mapping[str, Any]) -> Codec:
    """Return the codec that a file names, which may be one that no user chooses; see [`get_codec`]."""
    return CODECS[name].from_dict(options)


def encoder_from_name(name: str, options: Mapping[str, Any]) -> Encoder:
    """Return the encoder for what a user names as `codec`: `"auto"`, or one of the codecs.

    Args:
        name (`str`): `"auto"`, or the name of a codec.
        options (`Mapping[str, Any]`): its options; the others have their defaults.

    Raises:
        `CodecError`: there is no such codec, or it has no such option.

    Example:

    ```python
    >>> from dem_hub.codecs.registry import encoder_from_name
    >>> encoder_from_name("auto", {"max_bytes": "5%"}).options
    Auto(max_bytes='5%', max_error=None)

    ```
    """
    if name != AUTO:
        return CodecEncoder(get_codec(name, options))
    _refuse_options_of_codecs(options)
    return AutoEncoder(Auto.from_dict(options))


def _refuse_options_of_codecs(options: Mapping[str, Any]) -> None:
    """Name the codecs that have these options, if `auto` was given the options of another codec."""
    if not options:
        return
    owners = []
    for codec in list_codecs():
        known = {option.name for option in codec.options}
        if codec.name != AUTO and known.issuperset(options):
            owners.append(codec.name)
    if owners:
        given = ", ".join(map(repr, options))
        raise CodecError(f"Codec 'auto' has no option {given}; name the codec that it is for: {', '.join(owners)}.")
