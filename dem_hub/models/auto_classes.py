"""Registration of `model_type: "dem"`, so that transformers' Auto classes load a recipe.

Nothing here imports transformers: that would cost every `dem-hub merge` seconds that it has no use for. Hooks wait
until transformers' own tables of configs and models are imported, before or after dem_hub, and then add one small
class for each Auto class.
"""

import os
from functools import cache
from typing import Any, ClassVar

CONFIGS = "transformers.models.auto.configuration_auto"
MODELS = "transformers.models.auto.modeling_auto"


def register_when_imported() -> None:
    """Register recipes with the Auto classes as soon as transformers' tables are imported, or now if they are."""
    from wrapt import when_imported

    when_imported(CONFIGS)(_register_config)
    when_imported(MODELS)(_register_models)


@cache
def _config_class() -> Any:
    from transformers.configuration_utils import PreTrainedConfig

    class DEMAutoConfig(PreTrainedConfig):
        """What `AutoConfig` returns for a recipe: the JSON as it is. The recipe itself is read by [`DEMConfig`]."""

        model_type = "dem"

    return DEMAutoConfig


def _register_config(configs: Any) -> None:
    configs.AutoConfig.register("dem", _config_class(), exist_ok=True)


def _register_models(models: Any) -> None:
    class Registered:
        """Stands for all recipes in the table of one Auto class. What it loads is a native model."""

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
