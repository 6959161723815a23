"""How transformers' Auto classes learn `model_type: "dem"`, without anyone importing transformers for it.

Hooks wait for transformers' own tables of configs and models to be imported, before or after dem_hub, and add one small class for
each Auto class. Importing transformers here would cost every `dem-hub merge` seconds that it has no use for.
"""

import os
from functools import cache
from typing import Any, ClassVar

CONFIGS = "transformers.models.auto.configuration_auto"
MODELS = "transformers.models.auto.modeling_auto"


def register_when_imported() -> None:
    """Register as soon as transformers' tables are there."""
    from wrapt import when_imported

    when_imported(CONFIGS)(_register_config)
    when_imported(MODELS)(_register_models)


@cache
def _config_class() -> Any:
    from transformers.configuration_utils import PreTrainedConfig

    class DEMAutoConfig(PreTrainedConfig):
        """What `AutoConfig` makes of a recipe's `config.json`: the JSON as it is; the recipe proper is [`DEMConfig`]."""

        model_type = "dem"

    return DEMAutoConfig


def _register_config(configs: Any) -> None:
    configs.AutoConfig.register("dem", _config_class(), exist_ok=True)


def _register_models(models: Any) -> None:
    class Registered:
        """Stands for every DEM in one Auto class's table; what it loads is a native model."""

        config_class = _config_class()
        auto_class: ClassVar[Any]

        @classmethod
        def from_pretrained(cls, name_or_path: str | os.PathLike[str], **kwargs: Any) -> Any:
            """Load a recipe with the head of this Auto class."""
            from dem_hub.models.loading import load

            return load(cls.auto_class, name_or_path, kwargs)

    for name, auto_class in vars(models).items():
        if name.startswith("AutoModel") and getattr(auto_class, "_model_mapping", None) is not None:
            model = type(
                name.replace("Auto", "DEM", 1), (Registered,), {"auto_class": auto_class, "__module__": __name__}
            )
            auto_class.register(_config_class(), model, exist_ok=True)
