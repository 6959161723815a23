"""The model of a config, made without memory for its tensors."""

import re
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dem_hub.errors import CheckpointError, DemHubError, refuse
from dem_hub.files.json_types import fits
from dem_hub.files.shown import shown

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


# Held while a model is built or loaded, also by transformers itself. It changes then what belongs to the whole process:
# torch's default dtype, `torch.nn.init`, `PreTrainedModel.tie_weights`. Two threads at a time would put these back in
# the wrong order: heads stay untied, weights stay on the meta device, bfloat16 stays the default dtype.
ONE_MODEL = threading.RLock()


# Settings that say how many modules of a kind a model has, such as `num_hidden_layers`, `n_layer` and `depths`; sizes
# and ids (`block_size`) say nothing of this.
_COUNT = re.compile(r"(layer|block|expert|depth|stage)(?!.*(size|dim|length|id|ids|index|token)s?$)", re.IGNORECASE)


# Modules of a kind that one tensor may stand for: experts that are one tensor on disk. No model has more than 512.
_FUSED = 1024


def model_class(
    config: "PretrainedConfig", *, folder: Path | None = None, trust_remote_code: bool = False
) -> "type[PreTrainedModel]":
    """Return the model class that a config names in `architectures`.

    Args:
        config (`PretrainedConfig`): The config.
        folder (`Path`, *optional*): Where the model's own code lies. Defaults to where the config was read from.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether that code may be run.

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If it names none that transformers, or the model's own code, has.
    """
    import transformers

    names = getattr(config, "architectures", None) or []
    if not fits(list[str], names):
        names = []
    home = str(folder or config.name_or_path)
    if trust_remote_code and getattr(config, "auto_map", None):
        remote = _remote_class(config.auto_map, names, home)
        if remote is not None:
            return remote
    concrete_class: Any = getattr(transformers, names[0], None) if names else None
    # transformers has functions too, such as `pipeline`: a name in a file must not be enough to call one.
    is_model = isinstance(concrete_class, type) and issubclass(concrete_class, transformers.PreTrainedModel)
    if not is_model:
        raise CheckpointError(
            f"config.json of '{home}' names the architectures {shown(names)}, and transformers "
            f"{transformers.__version__} has no such class. Load through the AutoModel class of your task, "
            "or pass trust_remote_code=True if you trust its code."
        )
    return concrete_class  # type: ignore[no-any-return]


def _remote_class(auto_map: Mapping[str, Any], names: list[str], home: str) -> "type[PreTrainedModel] | None":
    """Return the class of a model's own code that `architectures` names; `None` if it is none of those.

    Without a name there is no choice to make only if the code has a single model.
    """
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    references = [str(reference) for auto_class, reference in auto_map.items() if auto_class.startswith("AutoModel")]
    for reference in references:
        if names and reference.rpartition(".")[2] == names[0]:
            return get_class_from_dynamic_module(reference, home)
    if not names and len(set(references)) == 1:
        return get_class_from_dynamic_module(references[0], home)
    return None


def check_counts(config: Mapping[str, Any], tensors: int, where: str) -> None:
    """Refuse a config that has more layers, blocks or experts than its checkpoint has tensors.

    transformers makes a module for each of them, also of a model without data, so that a config of 1 kB could take all
    memory.

    Args:
        config (`Mapping[str, Any]`): The config, with the configs in it.
        tensors (`int`): How many tensors the checkpoint has.
        where (`str`): The file, for the message.

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If there are such counts. All of them are listed.
    """
    most = tensors + _FUSED
    faults = [f"{name} is {shown(value)}" for name, value in _counts(config) if value > most]
    if faults:
        refuse(
            CheckpointError,
            f"{where} has more layers or experts than a checkpoint of {tensors} tensors can have.",
            faults,
            "Fetch the model again, or do not use it.",
        )


def _counts(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the numbers of a config, and of the configs in it, that say how many modules there are."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _counts(value)
        elif _COUNT.search(name):
            numbers = value if isinstance(value, list) else [value]
            yield from ((name, number) for number in numbers if type(number) is int)


def build(folder: Path, class_name: str | None = None, *, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Build the model of a folder without memory for its tensors.

    Args:
        folder (`Path`): The model's folder, with its `config.json`.
        class_name (`str`, *optional*): The class to load it as: for instance that of the text model alone, of a model
            that reads images too. Defaults to the class that the config names.
        trust_remote_code (`bool`, *optional*, defaults to `False`): As in [`describe`].

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If transformers has no such class, the class is of another model, or
            transformers cannot make a model of the config.
    """
    import transformers

    try:
        config: Any = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        concrete_class, config = _choose_class(folder, config, class_name, trust_remote_code=trust_remote_code)
        with ONE_MODEL, torch.device("meta"), _no_initialization():
            model: PreTrainedModel = concrete_class(config)
            return model
    except DemHubError:
        raise
    except Exception as error:
        # transformers believes a config: what a wrong value in it raises is of any type.
        reason = (str(error).splitlines() or [""])[0]
        raise CheckpointError(
            f"transformers cannot make a model of config.json of '{folder}' ({type(error).__name__}: {reason}). Fetch "
            "the model again; if it is newer than transformers, upgrade transformers."
        ) from error


def _choose_class(folder: Path, config: Any, class_name: str | None, *, trust_remote_code: bool) -> tuple[Any, Any]:
    """Return the class to build, and the config that it is built of: the text model has one of its own."""
    import transformers

    if class_name is None:
        return model_class(config, trust_remote_code=trust_remote_code), config
    concrete_class = getattr(transformers, class_name, None)
    text_config = config.get_text_config()
    expected = getattr(concrete_class, "config_class", None)
    if expected not in (type(config), type(text_config)):
        raise CheckpointError(f"'{folder}' is a {config.model_type}, and {class_name} is no class of that model.")
    if expected is not type(config):
        config = text_config
    return concrete_class, config


def needs_remote_code(config: Mapping[str, Any]) -> bool:
    """Check whether a `config.json` names code of its own, and transformers has no class for the model.

    Args:
        config (`Mapping[str, Any]`): The content of the file.
    """
    if not config.get("auto_map"):
        return False
    import transformers

    is_known = config.get("model_type") in transformers.CONFIG_MAPPING
    return not (is_known and all(hasattr(transformers, name) for name in config.get("architectures") or ()))


def _no_initialization() -> Any:
    """Return a context in which transformers builds a model without computing initial values."""
    from transformers.initialization import no_init_weights

    return no_init_weights()
