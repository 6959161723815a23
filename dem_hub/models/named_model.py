"""A model that somebody names: an ordinary one, a recipe, or an adapter. Its small files are looked at before weights
are loaded, so that what cannot be used is known within seconds.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.errors import ConfigError, NotFoundError
from dem_hub.files.folders import is_recipe, kind_of, lone_vector
from dem_hub.files.names import (
    ADAPTER_CONFIG,
    MODEL_CONFIG,
    PROVENANCE_CONFIG,
    STORE_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    VECTOR_CONFIG,
)
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.rounds import MOST_ROUNDS
from dem_hub.models.measurable import hub_options

if TYPE_CHECKING:
    from transformers import PretrainedConfig

_SMALL_FILES = (
    MODEL_CONFIG,
    ADAPTER_CONFIG,
    VECTOR_CONFIG,
    STORE_CONFIG,
    PROVENANCE_CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
)

# Arguments of `from_pretrained` that a config and a tokenizer need, too.
_FOR_ALL = ("token", "cache_dir", "local_files_only", "force_download", "trust_remote_code")


@dataclass(frozen=True)
class NamedModel:
    """A model on the Hub or in a folder.

    `folder` has its small files, and `kwargs` are further arguments of transformers' `from_pretrained`.
    """

    source: VectorSource
    folder: Path
    kwargs: Mapping[str, Any]

    @classmethod
    def find(cls, name: str | os.PathLike[str] | VectorSource, kwargs: Mapping[str, Any]) -> "NamedModel":
        """Find a model, without its weights.

        Raises:
            [`~dem_hub.errors.NotFoundError`]: If there is none of this name.
        """
        source = VectorSource.parse(name)
        resolved = resolve(source, _SMALL_FILES, hub_options(kwargs))
        if resolved.commit is not None:
            source = replace(source, revision=resolved.commit)
        return cls(source, resolved.folder, kwargs)

    def __str__(self) -> str:
        return str(replace(self.source, revision=None))

    @property
    def adapter_or_vector(self) -> str:
        """What it is in the words of messages, if it is an adapter or a vector and no model; else an empty text."""
        return lone_vector(self.folder)

    @property
    def has_tokenizer(self) -> bool:
        """True if it has a tokenizer of its own."""
        return any((self.folder / name).is_file() for name in (TOKENIZER, TOKENIZER_CONFIG))

    @property
    def recipe(self) -> DEMConfig | None:
        """The recipe that it is, or that it was merged from."""
        is_merged = (self.folder / PROVENANCE_CONFIG).is_file()
        if not is_merged and not is_recipe(self.folder):
            return None
        return DEMConfig.from_pretrained(self.source, **vars(hub_options(self.kwargs)))

    @cached_property
    def config(self) -> "PretrainedConfig":
        """The config of the model; of a recipe, that of the model that it is made from, by whatever number of rounds.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If it is not a model or a recipe.
        """
        from transformers import AutoConfig

        folder = self.folder
        if not (folder / MODEL_CONFIG).is_file():
            kind = kind_of(folder)
            what = f"{kind}, and not a model or a recipe" if kind else "not a model or a recipe: it has no config.json"
            raise NotFoundError(f"'{self}' is {what}. Check the name.")
        hub = hub_options(self.kwargs)
        source = self.source
        for _ in range(MOST_ROUNDS + 1):  # a circle of recipes is refused when the model is loaded
            if not is_recipe(folder):
                break
            source = DEMConfig.from_pretrained(source, **vars(hub)).base.source
            folder = resolve(source, (MODEL_CONFIG,), hub).folder
        try:
            config: PretrainedConfig = AutoConfig.from_pretrained(folder, **self._options)
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"'{self}' is not a model or a recipe ({reason}).") from error
        return config

    def tokenizer(self) -> Any:
        """Return its tokenizer."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.source.repo_id, **self._place, **self._options)

    def load(self, **options: Any) -> Any:
        """Load the model with the class that predicts tokens, as transformers does.

        Args:
            options: Arguments of `from_pretrained`, before those that came with the name.
        """
        from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

        auto_class: Any = AutoModelForSeq2SeqLM if self.config.is_encoder_decoder else AutoModelForCausalLM
        arguments = {"use_safetensors": True, **self.kwargs, **options}  # pickled weights can run code
        return auto_class.from_pretrained(self.source.repo_id, **self._place, **arguments)

    @property
    def _place(self) -> dict[str, Any]:
        return {"revision": self.source.revision, "subfolder": self.source.subfolder}

    @property
    def _options(self) -> dict[str, Any]:
        return {name: self.kwargs[name] for name in _FOR_ALL if name in self.kwargs}
