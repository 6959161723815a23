"""The options of a codec: the fields of a frozen dataclass, made from names and values and written back as such.

A file, the command line and a keyword argument all give options as names and values. They are checked here, in one way.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

from dem_hub.errors import CodecError
from dem_hub.files.plain_numbers import plain

# Options by which a user asks for few bytes, rather than for a rank or a dtype.
_SIZE_OPTIONS = frozenset({"max_bytes", "energy"})


@dataclass(frozen=True)
class Options:
    """The base class of every codec and of `Auto`.

    `name` is what a user and a file call it; each field is an option.
    """

    name: ClassVar[str]

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> Self:
        """Return an instance with these options, and with the defaults of the others.

        Raises:
            `CodecError`: an option that does not exist, or a value of a wrong type or out of range.
        """
        known = [item.name for item in fields(cls)]
        unknown = sorted(set(options) - set(known))
        if unknown:
            names = ", ".join(map(repr, unknown))
            raise CodecError(f"Codec '{cls.name}' has no option {names}; it has {', '.join(known) or 'none'}.")
        try:
            return cls(**plain(options))
        except TypeError as error:
            raise CodecError(f"Codec '{cls.name}' cannot take the options {dict(options)} ({error}).") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a file keeps them: those that are `None` are left out."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    @property
    def is_for_size(self) -> bool:
        """True if the user asks for few bytes with these options, so that a vector has no byte more than it needs."""
        return not _SIZE_OPTIONS.isdisjoint(self.to_dict())
