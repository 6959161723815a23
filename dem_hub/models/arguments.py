"""The keyword arguments of `from_pretrained`, divided once by who reads them.

Some are for dem_hub and the Hub, some for transformers' config, the rest for the model's own `from_pretrained`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PretrainedConfig

from dem_hub.errors import ConfigError
from dem_hub.hub.client import HubOptions

# Device maps that accelerate works out. Any other string is the name of one device.
_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")

_HUB_ARGUMENTS = ("token", "cache_dir", "local_files_only", "force_download")

# Names of weights other than the base's own safetensors, from which the vectors were not taken.
_OTHER_WEIGHTS = ("variant", "gguf_file", "state_dict")


@dataclass(frozen=True)
class LoadArguments:
    """The arguments of `from_pretrained` beside the name, checked before anything is read.

    `config` is `None` if the base's own config is to be read, and a text if it is to be read from another place.
    `for_model` are the arguments that only the model's `from_pretrained` knows and that a config must not see;
    `others` are for the config, and what the config does not know is for the model.
    """

    revision: str | None
    subfolder: str
    hub: HubOptions
    dtype: str | torch.dtype | None
    trust_remote_code: bool
    config: PretrainedConfig | str | None
    for_model: Mapping[str, Any]
    others: Mapping[str, Any]

    @classmethod
    def split(cls, arguments: Mapping[str, Any]) -> "LoadArguments":
        """Divide the keyword arguments of a call; the mapping itself stays as it is.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If they name a device that this machine does not have, or other weights
                than the base's safetensors files.
        """
        others = dict(arguments)
        _check_device(others.get("device_map"))
        _refuse_other_weights(others)
        for name in _OTHER_WEIGHTS:
            others.pop(name, None)  # `None` stands for the base's own
        hub = HubOptions(**{name: others.pop(name) for name in _HUB_ARGUMENTS if name in others})
        config = others.pop("config", None)
        if isinstance(config, os.PathLike):
            config = os.fspath(config)
        if isinstance(config, PretrainedConfig) and config.model_type == "dem":
            # An Auto class has read the recipe's `config.json` already, which says nothing about the base's
            # architecture.
            config = None
        # `torch_dtype` is the older name, which transformers still accepts.
        older_dtype = others.pop("torch_dtype", None)
        for_model = {}
        if "quantization_config" in others:
            for_model["quantization_config"] = others.pop("quantization_config")
        return cls(
            revision=others.pop("revision", None),
            subfolder=others.pop("subfolder", None) or "",
            hub=hub,
            dtype=others.pop("dtype", older_dtype),
            # Only the caller can allow code to run. A file that asks for it is not listened to.
            trust_remote_code=bool(others.pop("trust_remote_code", False)),
            config=config,
            for_model=for_model,
            others=others,
        )


def _check_device(device_map: Any) -> None:
    """Refuse a device that this machine does not have, or that holds no values, before anything is read."""
    if torch.get_default_device().type == "meta":
        raise ConfigError(
            "The default device is 'meta' (torch.device(\"meta\") or torch.set_default_device), where tensors have no "
            "values, and a merge consists of values. Load outside of it. An empty model is "
            "made from a config: AutoModelForCausalLM.from_config(...)."
        )
    if not isinstance(device_map, str) or device_map in _DEVICE_MAPS:
        return
    try:
        torch.empty(0, device=device_map)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"device_map is '{device_map}', which is no device of this machine ({reason}). Leave it out for 'cpu'."
        ) from error


def _refuse_other_weights(arguments: Mapping[str, Any]) -> None:
    """Refuse arguments that name weights other than the base's own safetensors files."""
    for name in _OTHER_WEIGHTS:
        if arguments.get(name) is not None:
            raise ConfigError(
                f"{name} is {arguments[name]!r}; vectors are added to the base's model.safetensors only. Save those "
                "weights as a folder of their own and name it as the base."
            )
    if arguments.get("use_safetensors") is False:
        raise ConfigError("use_safetensors is False; pickled weights can run code and are never read. Leave it out.")
