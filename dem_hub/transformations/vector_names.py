"""The vectors that a transformation is given by their names: several, each once."""

import os
from collections.abc import Iterable

from dem_hub.errors import ConfigError
from dem_hub.hub.references import VectorSource
from dem_hub.merging.records import named_twice


def check_vector_names(vectors: Iterable[str | VectorSource]) -> None:
    """Refuse no vectors, one name in the place of several, and a vector that is named twice.

    Raises:
        `ConfigError`: If this is so.
    """
    if isinstance(vectors, str | os.PathLike | VectorSource):
        raise ConfigError(f"vectors is '{vectors}', one name. Give a list of names: ['{vectors}'].")
    names = [str(VectorSource.parse(vector)) for vector in vectors]
    if not names:
        raise ConfigError("There are no vectors to transform. Name one at least.")
    twice = named_twice(names)
    if twice:
        raise ConfigError(f"Vectors named twice: {', '.join(twice)}. Name each once.")
