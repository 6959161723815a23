"""What is run on data: the base with its vectors at coefficient 0, its config ahead of it, and the tokenizer of the data."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dem_hub.errors import ConfigError
from dem_hub.files.folders import is_recipe
from dem_hub.files.names import MODEL_CONFIG
from dem_hub.hub.client import HubOptions
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.merging.records import named_twice

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from dem_hub.models.loading import MergedModel

# The arguments of `from_pretrained` that say how to reach the Hub.
_HUB_ARGUMENTS = ("token", "cache_dir", "local_files_only", "force_download")


@dataclass(frozen=True)
class Measurable:
    """A base with all vectors at coefficient 0, which is loaded once, when the model is first asked for.

    Args:
        base (`str`, `os.PathLike` or [`VectorSource`]): The base.
        vectors (`Sequence[str]`): The vectors.
        dtype (`str`, *optional*): Type of the weights; `None` is the base's own.
        kwargs (`Mapping[str, Any]`): Further arguments of [`DEMModel.from_pretrained`].
    """

    base: str | os.PathLike[str] | VectorSource
    vectors: Sequence[str | VectorSource]
    dtype: str | None
    kwargs: Mapping[str, Any]

    @cached_property
    def config(self) -> "PretrainedConfig":
        """The config of the model, read before its weights are, where that is possible.

        Raises:
            `NotFoundError`: There is no such base.
        """
        from transformers import AutoConfig, PretrainedConfig

        config: PretrainedConfig | str | None = self.kwargs.get("config")
        if isinstance(config, PretrainedConfig):
            return config
        folder = resolve(VectorSource.parse(self.base), (MODEL_CONFIG,), hub_options(self.kwargs)).folder
        if config is None and (folder / MODEL_CONFIG).is_file() and not is_recipe(folder):
            with suppress(OSError, ValueError, KeyError):
                read: PretrainedConfig = AutoConfig.from_pretrained(
                    folder, trust_remote_code=bool(self.kwargs.get("trust_remote_code"))
                )
                return read
        # The loading of the model says what is wrong with the config, or copes with it.
        return self.model.config

    @cached_property
    def model(self) -> "MergedModel":
        """The model.

        Raises:
            `ConfigError`: A vector is named twice.
        """
        from dem_hub.models.loading import DEMModel

        source = VectorSource.parse(self.base)
        names = [VectorSource.parse(vector) for vector in self.vectors]
        twice = named_twice(map(str, names))
        if twice:
            raise ConfigError(f"Vectors named twice: {', '.join(twice)}. Name each once.")
        zeros: dict[VectorSource, float] = dict.fromkeys(names, 0.0)
        return DEMModel.from_pretrained(
            source.repo_id,
            revision=source.revision,
            subfolder=source.subfolder,
            vectors=zeros,
            dtype=self.dtype,
            **self.kwargs,
        )


def tokenizer_loader(
    tokenizer: Any, base: str | os.PathLike[str] | VectorSource, kwargs: Mapping[str, Any]
) -> Callable[[], Any]:
    """Return a function that returns the tokenizer.

    That of the base is loaded at the first call, as data of token ids needs none. It is found as the base is, with
    those of `kwargs` that say how.
    """

    @functools.cache
    def load() -> Any:
        if tokenizer is not None:
            return tokenizer
        from transformers import AutoTokenizer

        source = VectorSource.parse(base)
        options = {name: kwargs[name] for name in (*_HUB_ARGUMENTS, "trust_remote_code") if name in kwargs}
        return AutoTokenizer.from_pretrained(
            source.repo_id, revision=source.revision, subfolder=source.subfolder, **options
        )

    return load


def hub_options(kwargs: Mapping[str, Any]) -> HubOptions:
    """Return those of the arguments of `from_pretrained` that say how to reach the Hub."""
    return HubOptions(**{name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs})
