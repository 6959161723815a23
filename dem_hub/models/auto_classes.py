"""Recipes in transformers: its Auto classes, its model classes and `pipeline` load them as they load the base.

`AutoConfig` returns the base's own config for a recipe, so whatever goes by a config (heads, arguments such as
`num_labels`, tokenizers, processors) does what it does for the base. It ends in a model class's `from_pretrained`,
which hands a recipe over to `dem_hub.models.loading`.

Model classes load one model at a time, whatever it is: see `ONE_MODEL` of `dem_hub.checkpoints.model_building`.

Nothing here imports transformers: that would cost every `dem-hub merge` seconds that it has no use for. Hooks wait
until transformers' own modules are imported, before or after dem_hub.
"""

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

CONFIGS = "transformers.models.auto.configuration_auto"
MODELS = "transformers.models.auto.modeling_auto"
MODEL_CLASSES = "transformers.modeling_utils"

# What `from_pretrained` needs to find a file on the Hub, among its arguments.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

# What `AutoConfig` adds to the arguments of its caller.
_OF_AUTO_CONFIG = ("name_or_path", "return_unused_kwargs", "_from_auto", "_from_pipeline")


def register_when_imported() -> None:
    """Register recipes with transformers as soon as its modules are imported, or now if they are."""
    from wrapt import when_imported

    when_imported(CONFIGS)(_register_config)
    when_imported(MODELS)(_register_models)
    when_imported(MODEL_CLASSES)(_wrap_model_classes)


@cache
def _config_class() -> Any:
    from transformers.configuration_utils import PreTrainedConfig

    class DEMAutoConfig(PreTrainedConfig):
        """The config class with which transformers reads a recipe's `config.json`. The recipe itself is read by
        [`DEMConfig`].

        An instance stands for a recipe whose base's config cannot be had here: it needs code of its own, or the Hub
        wants a token that only the model's `from_pretrained` gets.
        """

        model_type = "dem"

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            """Return the base's config with these arguments, as `AutoConfig` does for the base."""
            config_and_unused = _base_config(config_dict, kwargs)
            if config_and_unused is None:
                # All arguments are left for the model, which knows the base.
                unused = {key: value for key, value in kwargs.items() if key not in _OF_AUTO_CONFIG}
                config_and_unused = (cls(**config_dict), unused)
            return config_and_unused if kwargs.get("return_unused_kwargs") else config_and_unused[0]

    return DEMAutoConfig


def _base_config(data: Mapping[str, Any], arguments: Mapping[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Return the config of a recipe's base and the arguments that it did not take; `None` if it cannot be had."""
    from transformers import AutoConfig

    from dem_hub.checkpoints.model_config import read_config
    from dem_hub.errors import DemHubError
    from dem_hub.files.names import MODEL_CONFIG
    from dem_hub.hub.download import resolve
    from dem_hub.hub.references import VectorSource
    from dem_hub.merging.config import DEMConfig

    name = arguments.get("name_or_path")
    if name is None:
        return None
    folder = Path(name)
    if folder.is_file():
        folder = folder.parent
    try:
        home: Path | VectorSource = folder
        if not folder.is_dir():
            home = VectorSource.parse(name)
        elif read_config(folder).get("vectors") != data.get("vectors"):
            return None  # the recipe lies in a subfolder that is not told here
        recipe = DEMConfig.from_dict({**data}, str(name), home)
        base = resolve(recipe.base.source, (MODEL_CONFIG,)).folder
        if read_config(base).get("auto_map"):
            return None
        given = {key: value for key, value in arguments.items() if key not in _OF_AUTO_CONFIG}
        if recipe.dtype is not None and not {"dtype", "torch_dtype"} & given.keys():
            given["dtype"] = recipe.dtype
        config, unused = AutoConfig.from_pretrained(base, return_unused_kwargs=True, **given)
    except (DemHubError, OSError, ValueError):
        return None  # the model's `from_pretrained` will say why
    return config, unused


def _register_config(configs: Any) -> None:
    configs.AutoConfig.register("dem", _config_class(), exist_ok=True)


def _register_models(models: Any) -> None:
    class Registered:
        """Stands for the recipes whose base's config cannot be had by itself. What it loads is a native model."""

        config_class = _config_class()
        auto_class: ClassVar[Any]

        @classmethod
        def from_pretrained(cls, name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
            """Load a recipe with the head of this Auto class."""
            from dem_hub.models.loading import load

            return load(cls.auto_class, name_or_path, kwargs)

    for name, auto_class in vars(models).items():
        if name.startswith("AutoModel") and getattr(auto_class, "_model_mapping", None) is not None:
            members = {"auto_class": auto_class, "__module__": __name__}
            model_class = type(name.replace("Auto", "DEM", 1), (Registered,), members)
            auto_class.register(_config_class(), model_class, exist_ok=True)


def _wrap_model_classes(models: Any) -> None:
    """Let every model class load recipes, and wait for loads in other threads."""
    from wrapt import wrap_function_wrapper

    wrap_function_wrapper(models, "PreTrainedModel.from_pretrained", _from_pretrained)
    wrap_function_wrapper(models, "PreTrainedModel._from_config", _alone)


def _alone(original: Callable[..., Any], _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make a model as transformers does, while no other thread makes one."""
    from dem_hub.checkpoints.model_building import ONE_MODEL

    with ONE_MODEL:
        return original(*args, **kwargs)


def _from_pretrained(original: Callable[..., Any], owner: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Load a recipe with the model class `owner`, and anything else as transformers does."""
    name = args[0] if args else kwargs.get("pretrained_model_name_or_path")
    if not isinstance(name, (str, os.PathLike)):
        return _alone(original, owner, args, kwargs)
    if not Path(name).is_dir():
        try:
            return _alone(original, owner, args, kwargs)
        except Exception:
            # Asked only now, so that no other model costs a request more.
            if not _is_recipe(name, kwargs):
                raise
    elif not _is_recipe(name, kwargs):
        return _alone(original, owner, args, kwargs)
    from dem_hub.models.loading import load

    others = {key: value for key, value in kwargs.items() if key != "pretrained_model_name_or_path"}
    return load(owner, name, others)


def _is_recipe(name: str | os.PathLike[str], arguments: Mapping[str, Any]) -> bool:
    """Return whether a folder or a repository is a recipe, by its `config.json`."""
    from dem_hub.files.folders import is_recipe

    if Path(name).is_dir():
        return is_recipe(Path(name) / (arguments.get("subfolder") or ""))
    from transformers import PretrainedConfig

    where = {key: arguments[key] for key in _HUB_ARGUMENTS if arguments.get(key) is not None}
    try:
        data, _ = PretrainedConfig.get_config_dict(name, **where)
    except (OSError, ValueError):
        return False
    return bool(data.get("model_type") == "dem")
