"""Mixes: what a request to a server may say in the place of a model's name, such as `dem:maths=0.4+chat=0.3`.

A request comes from anybody. So a mix consists of short names and numbers alone, and never of a path or an id: what a
short name stands for is the matter of the server's owner (see [`dem_hub.serving.permitted`]).
"""

import re
from dataclasses import dataclass

from dem_hub.errors import ConfigError
from dem_hub.files.shown import shown

# What the name of a mix begins with, so that no other name of a model is taken for one.
PREFIX = "dem:"

# A short name. It has neither "+" nor "=", which divide a mix, nor a slash, as ids and paths have.
SHORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")

# A decimal number. The exponent has no "+", which divides a mix; the digits are more than a float64 has.
_NUMBER = re.compile(r"-?(\d{1,6}(\.\d{0,20})?|\.\d{1,20})([eE]-?\d{1,2})?", re.ASCII)

# Characters of the name of a mix. A hundred vectors have room.
_LONGEST = 4000


@dataclass(frozen=True)
class Mix:
    """A weighted sum of vectors, by short names in alphabetical order, without those of coefficient 0."""

    coefficients: tuple[tuple[str, float], ...]

    def __str__(self) -> str:
        """Return the one name that all spellings of this mix have in common."""
        return PREFIX + "+".join(f"{name}={coefficient!r}" for name, coefficient in self.coefficients)

    @classmethod
    def parse(cls, text: str) -> "Mix":
        """Read a mix.

        Args:
            text (`str`): `NAME=COEFFICIENT`, or several with `+` between them, after the prefix `dem:`.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If it is not of this form, names a vector twice, or changes nothing.

        Example:

        ```python
        >>> from dem_hub.serving.mixes import Mix
        >>> str(Mix.parse("dem:maths=0.40+chat=-.3"))
        'dem:chat=-0.3+maths=0.4'

        ```
        """
        if len(text) > _LONGEST:
            raise ConfigError(f"The mix {shown(text)} has {len(text)} characters, and {_LONGEST} are allowed.")
        coefficients: dict[str, float] = {}
        for part in text.removeprefix(PREFIX).split("+"):
            name, _, number = part.partition("=")
            if SHORT_NAME.fullmatch(name) is None or _NUMBER.fullmatch(number) is None:
                raise ConfigError(
                    f"{shown(part)} in the mix {shown(text)} is not NAME=COEFFICIENT. Write, for instance, "
                    f"'{PREFIX}maths=0.4+chat=0.3'."
                )
            if name in coefficients:
                raise ConfigError(f"The mix {shown(text)} has '{name}' twice. Add its coefficients instead.")
            coefficients[name] = float(number)
        used = tuple((name, value) for name, value in sorted(coefficients.items()) if value)
        if not used:
            raise ConfigError(f"All coefficients of the mix {shown(text)} are 0. Ask for the base by its own name.")
        return cls(used)
