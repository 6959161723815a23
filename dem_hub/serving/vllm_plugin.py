"""The plug-in of vLLM: recipes are merged while vLLM loads them, and mixes of vectors are served by request.

`pyproject.toml` names [`register`] in the group `vllm.general_plugins`, and vLLM calls it in each of its processes.
What is registered there:

* `--load-format dem`, a model loader. It yields the merged tensors under the names of the base's files. vLLM divides
  them among its ranks and quantises them; of several ranks each merges the part that it keeps. `reload_weights` goes
  the same way.
* `--config-format dem`, a config parser, so that a recipe's own id can be served: the config is that of its base.
* A resolver of LoRA adapters, if the owner of the server lists what may be mixed (see [`dem_hub.serving.permitted`]).

vLLM is imported within [`register`] alone. What merges is imported when a model is loaded and not before: torch comes
with it, and numba with the first merge, in a process in which vLLM's CPU workers then stop with an error as they
start.
"""

import asyncio
import gc
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dem_hub.errors import ConfigError
from dem_hub.hub.client import HubOptions
from dem_hub.hub.references import VectorSource
from dem_hub.serving.permitted import VARIABLE, Permitted

if TYPE_CHECKING:
    import torch

    from dem_hub.merging.opened_recipe import OpenedRecipe
    from dem_hub.serving.mix_adapters import MixAdapters

# The load format, the config format and the resolver have one name.
NAME = "dem"


def register() -> None:
    """Tell vLLM of the model loader, the config parser and, if mixes are permitted, the resolver.

    A second call in one process changes nothing.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the list of what may be mixed cannot be read. vLLM does not start then.
    """
    from vllm.model_executor import model_loader
    from vllm.transformers_utils import config

    if NAME not in model_loader._LOAD_FORMAT_TO_MODEL_LOADER:
        model_loader.register_model_loader(NAME)(_loader_class())
    if NAME not in config._CONFIG_FORMAT_TO_CONFIG_PARSER:
        config.register_config_parser(NAME)(_parser_class())
    if os.environ.get(VARIABLE):
        _register_resolver(Permitted.read(Path(os.environ[VARIABLE])))


def _loader_class() -> type:
    """Return the class of the model loader."""
    from vllm.distributed.parallel_state import get_world_group
    from vllm.model_executor.model_loader import BaseModelLoader

    class DEMModelLoader(BaseModelLoader):  # type: ignore[misc]  # vLLM is not here when types are checked
        """A loader that merges a recipe."""

        def __init__(self, load_config: Any) -> None:
            super().__init__(load_config)
            self._recipe = _recipe_of(load_config.model_loader_extra_config)

        def download_model(self, model_config: Any) -> None:
            """Fetch the base and the vectors, and check that they fit together."""
            self._open(model_config)

        def load_weights(self, model: Any, model_config: Any) -> None:
            """Merge all tensors into a model that was built."""
            if os.environ.get(VARIABLE):
                raise ConfigError(
                    f"--load-format dem serves base + recipe, and {VARIABLE} asks for mixes, each of which is base + "
                    "mix. A mix would be added to the recipe. Serve the base without --load-format dem, or do without "
                    "mixes."
                )
            weights = self.get_all_weights(model_config, model)
            if _device_of(model).type == "cpu":
                weights = _frozen_after_first(weights)
            loaded = model.load_weights(weights)
            # A quantised model has parameters that no checkpoint has, and some models do not say what they have loaded.
            if loaded is not None and model_config.quantization is None:
                _check_loaded(model, loaded)

        def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, "torch.Tensor"]]:
            """Yield the merged tensors; vLLM asks for these to change the weights of a running model, too."""
            from dem_hub.serving.served_weights import merged_weights

            opened = self._open(model_config)
            vocabulary = model_config.hf_config.get_text_config().vocab_size
            return merged_weights(
                opened,
                dtype=model_config.dtype,
                device=_device_of(model),
                vocabulary=vocabulary,
                ranks=get_world_group().world_size,
            )

        def _open(self, model_config: Any) -> "OpenedRecipe":
            from dem_hub.serving.served_weights import open_served

            source = VectorSource.parse(model_config.model, revision=model_config.revision)
            return open_served(source, self._recipe, HubOptions(cache_dir=self.load_config.download_dir))

    return DEMModelLoader


def _recipe_of(extra_config: Any) -> str | None:
    """Return the recipe that `--model-loader-extra-config` names.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it has another key, or the recipe is not a text.
    """
    extra = dict(extra_config or {})
    recipe = extra.pop("recipe", None)
    if extra or not isinstance(recipe, str | None):
        raise ConfigError(
            f"--model-loader-extra-config is {extra_config!r}; with --load-format dem it has one key, the recipe: "
            '\'{"recipe": "me/my-dem"}\'.'
        )
    return recipe


def _frozen_after_first(weights: Iterator[tuple[str, "torch.Tensor"]]) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Yield all weights, and leave to vLLM's garbage collections what was made before the second of them.

    numba has been loaded by then, and made 85,000 objects that stay. vLLM collects garbage three times from here to the
    end of its start, and each time took 0.45 s instead of 0.36 s. At the end it freezes all objects in the same way
    (`freeze_gc_heap`), and undoes that when an engine is shut down in a process that goes on.
    """
    for number, weight in enumerate(weights):
        if number == 1:
            gc.freeze()
        yield weight


def _check_loaded(model: Any, loaded: set[str]) -> None:
    """Refuse a model with parameters that nothing was loaded into."""
    missing = sorted({name for name, _ in model.named_parameters()} - loaded)
    if missing:
        raise ConfigError(
            f"vLLM's model has {len(missing)} parameters that the recipe's base lacks ({', '.join(missing[:3])}). "
            "Serve the base of the recipe, with its own config."
        )


def _device_of(model: Any) -> "torch.device":
    """Return where a model's parameters are. Those that are quantised while they load have no place yet."""
    import torch
    from vllm.platforms import current_platform

    for parameter in model.parameters():
        if parameter.device.type != "meta":
            return torch.device(parameter.device)
    return torch.device(current_platform.device_type)


def _parser_class() -> type:
    """Return the class of the config parser."""
    from vllm.transformers_utils.config import get_config_parser
    from vllm.transformers_utils.config_parser_base import ConfigParserBase

    class DEMConfigParser(ConfigParserBase):  # type: ignore[misc]  # vLLM is not here when types are checked
        """A parser that returns the config of a recipe's base, with the dtype and the vocabulary of the merge."""

        def parse(
            self,
            model: Any,
            trust_remote_code: bool,  # noqa: FBT001  # as vLLM calls it
            revision: str | None = None,
            code_revision: str | None = None,
            **kwargs: Any,
        ) -> tuple[dict[str, Any], Any]:
            """Read the config; see vLLM's `ConfigParserBase`."""
            from dem_hub.merging.config import DEMConfig

            source = VectorSource.parse(model, revision=revision)
            recipe = DEMConfig.from_pretrained(source)
            base = recipe.base.source
            if recipe.below():
                raise ConfigError(
                    f"The base of '{source}' is the recipe '{base}', of which vLLM cannot make a config. Merge that "
                    f"one (dem-hub merge {base} -o MODEL), and serve MODEL with --load-format dem and "
                    f'--model-loader-extra-config \'{{"recipe": "{source}"}}\'.'
                )
            if base.subfolder:
                raise ConfigError(
                    f"The base '{base}' is in a subfolder, where vLLM does not look. Serve a merged model."
                )
            data, config = get_config_parser("hf").parse(
                base.repo_id, trust_remote_code, revision=base.revision, code_revision=code_revision, **kwargs
            )
            if recipe.dtype is not None:
                config.dtype = recipe.dtype
                data["dtype"] = recipe.dtype
            if any(record.tokens for record in recipe.vectors):
                _set_vocabulary(source, data, config)
            return data, config

    return DEMConfigParser


def _set_vocabulary(source: VectorSource, data: dict[str, Any], config: Any) -> None:
    """Set the size of the merged vocabulary in both forms of a config, from the headers of the base and the vectors."""
    from dem_hub.merging.exported_files import set_vocabulary_in_json
    from dem_hub.merging.opening import open_recipe
    from dem_hub.models.vocabulary import set_vocabulary

    opened = open_recipe(source, headers_only=True)
    merge = opened.merge(opened.recipe)
    set_vocabulary(config, merge)
    set_vocabulary_in_json(data, merge)


def _register_resolver(permitted: Permitted) -> None:
    """Tell vLLM of the resolver, unless it knows it already."""
    from vllm.lora.request import LoRARequest
    from vllm.lora.resolver import LoRAResolver, LoRAResolverRegistry

    if NAME in LoRAResolverRegistry.get_supported_resolvers():
        return

    @cache
    def adapters() -> "MixAdapters":
        from dem_hub.serving.mix_adapters import MixAdapters

        return MixAdapters(permitted)

    class DEMResolver(LoRAResolver):  # type: ignore[misc]  # vLLM is not here when types are checked
        """A resolver that makes one adapter of a mix or a recipe."""

        async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
            """Return the adapter for a model's name, or `None` if it is neither a mix nor a listed recipe."""
            find = adapters().find
            folder = await asyncio.to_thread(find, base_model_name, lora_name)
            if folder is None:
                return None
            # vLLM sets the number itself, and refuses 0.
            return LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder))

    LoRAResolverRegistry.register_resolver(NAME, DEMResolver())
