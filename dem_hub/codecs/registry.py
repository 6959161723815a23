"""Codecs by their names: those that a user chooses, and those that a file names."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import import_module
from typing import Any, TypeVar

from dem_hub.codecs.codec import Codec
from dem_hub.codecs.listing import AUTO, INTERNAL, OFFERED
from dem_hub.errors import CodecError

_Made = TypeVar("_Made")


def _load_class(home: str) -> type[Codec]:
    module, _, name = home.rpartition(".")
    loaded: type[Codec] = getattr(import_module(f"dem_hub.codecs.{module}"), name)
    return loaded


CODECS: dict[str, type[Codec]] = {name: _load_class(home) for name, home in {**OFFERED, **INTERNAL}.items()}


def get_codec(name: str, options: Mapping[str, Any]) -> Codec:
    """Return the codec of this name with these options.

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
