"""Loading of what a search runs: the base with its vectors, and the tokenizer of the data."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dem_hub.errors import ConfigError
from dem_hub.hub.references import VectorSource

if TYPE_CHECKING:
    from dem_hub.models.loading import MergedModel


def load_model(
    base: str | os.PathLike[str] | VectorSource,
    vectors: Sequence[str | VectorSource],
    dtype: str | None,
    kwargs: Mapping[str, Any],
) -> "MergedModel":
    """Load the base with all vectors at coefficient 0.

    Args:
        base (`str`, `os.PathLike` or [`VectorSource`]): The base.
        vectors (`Sequence[str]`): The vectors.
        dtype (`str`, *optional*): Type of the weights; `None` is the base's own.
        kwargs (`Mapping[str, Any]`): Further arguments of [`DEMModel.from_pretrained`].

    Raises:
        `ConfigError`: A vector is named twice.
    """
    from dem_hub.models.loading import DEMModel

    source = VectorSource.parse(base)
    names = [VectorSource.parse(vector) for vector in vectors]
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"Vectors named twice: {', '.join(twice)}. Name each once.")
    zeros: dict[VectorSource, float] = dict.fromkeys(names, 0.0)
    return DEMModel.from_pretrained(
        source.repo_id, revision=source.revision, subfolder=source.subfolder, vectors=zeros, dtype=dtype, **kwargs
    )


def tokenizer_loader(tokenizer: Any, base: str | os.PathLike[str] | VectorSource) -> Callable[[], Any]:
    """Return a function that returns the tokenizer.

    That of the base is loaded at the first call, as data of token ids needs none.
    """

    @functools.cache
    def load() -> Any:
        if tokenizer is not None:
            return tokenizer
        from transformers import AutoTokenizer

        source = VectorSource.parse(base)
        return AutoTokenizer.from_pretrained(source.repo_id, revision=source.revision, subfolder=source.subfolder)

    return load
