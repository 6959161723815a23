"""Where transformers would put the parts of a model, and how many bytes that is on each device.

The model is built without memory for its tensors, and transformers' own code divides it among the devices, so that the
answer is that of a real load with the same `device_map` and `max_memory`. The devices need not be those of this machine.
"""

import logging
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from dem_hub.checkpoints.model_building import ONE_MODEL, check_counts, model_class
from dem_hub.checkpoints.model_config import read_config
from dem_hub.errors import ConfigError
from dem_hub.models.planned import PlannedModel
from dem_hub.models.vocabulary import set_vocabulary
from dem_hub.planning.bounds import quantized_bytes

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

Quantize = Literal["4bit", "8bit"]

CPU = "cpu"
DISK = "disk"

# Device maps that transformers works out. Any other text is the name of one device.
DIVIDED = ("auto", "balanced", "balanced_low_0", "sequential")

# What warns that a device is not on this machine, or too small, which is no news for a plan.
_LOGS = ("accelerate.utils.modeling", "transformers.integrations.accelerate")


@dataclass(frozen=True)
class EmptyModel:
    """A model without memory for its tensors, and the quantizer that has replaced its layers, if there is one."""

    model: "PreTrainedModel"
    dtype: torch.dtype
    quantize: Quantize | None
    quantizer: Any

    def sizes(self) -> dict[str, int]:
        """Return what each parameter and buffer takes, in bytes, by its name. Tied weights count once."""
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        wide = self.model._get_dtype_plan(self.dtype)
        sizes = {}
        for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
            if name in tied:
                continue
            if self._is_quantized(name):
                sizes[name] = quantized_bytes(str(self.quantize), tensor.numel(), tensor.shape[0])
                continue
            itemsize = tensor.element_size()
            if any(re.search(pattern, name) for pattern in wide):
                itemsize = torch.float32.itemsize
            sizes[name] = itemsize * tensor.numel()
        return sizes

    @property
    def largest_quantized(self) -> int:
        """Bytes in float32 of the largest weight that is quantised; 0 if none is."""
        weights = [tensor for name, tensor in self.model.named_parameters() if self._is_quantized(name)]
        return max((torch.float32.itemsize * weight.numel() for weight in weights), default=0)

    def place(self, device_map: str, max_memory: Mapping[str, int]) -> dict[str, int]:
        """Return the bytes that go to each place: the number of a device, `cpu`, or `disk`.

        Args:
            device_map (`str`): As in transformers.
            max_memory (`Mapping[str, int]`): Bytes that the weights may take on each device.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If the loader does not divide such a model, with its reason.
        """
        devices = self._device_map(device_map, max_memory)
        parts: dict[str, int] = defaultdict(int)
        for name, nbytes in self.sizes().items():
            parts[_place_of(name, devices)] += nbytes
        return dict(parts)

    def _is_quantized(self, name: str) -> bool:
        return self.quantizer is not None and bool(self.quantizer.param_needs_quantization(self.model, name))

    def _device_map(self, device_map: str, max_memory: Mapping[str, int]) -> dict[str, Any]:
        """Return the place of each module, by its name."""
        if device_map not in DIVIDED:
            return {"": device_of(device_map)}
        from transformers.integrations.accelerate import _get_device_map

        limits = {_key(place): nbytes for place, nbytes in max_memory.items()}
        try:
            with _quiet():
                divided: dict[str, Any] = _get_device_map(self.model, device_map, limits, self.quantizer)
        except ValueError as error:
            reason = " ".join(str(error).split()).partition(". ")[0]
            raise ConfigError(f"transformers does not load it so: {reason}.") from error
        return divided


def empty_model(planned: PlannedModel, dtype: torch.dtype, quantize: Quantize | None) -> EmptyModel:
    """Build the model of a plan without memory for its tensors.

    Args:
        planned ([`PlannedModel`]): The model. Its headers are enough.
        dtype (`torch.dtype`): What it is loaded in.
        quantize (`str`, *optional*): `4bit` or `8bit`: its linear layers are replaced by those of bitsandbytes.

    Raises:
        [`~dem_hub.errors.CheckpointError`]: If transformers has no class for the model.
    """
    config = merged_config(planned)
    concrete_class = model_class(config, folder=planned.opened.base.folder)
    if concrete_class.config_class is not type(config):
        config = config.get_text_config()
    with ONE_MODEL, torch.device("meta"):
        model = concrete_class._from_config(config, dtype=dtype)
        quantizer = _quantizer(quantize)
        if quantizer is not None:
            quantizer.preprocess_model(model=model, dtype=dtype, device_map=None)
    return EmptyModel(model, dtype, quantize, quantizer)


def merged_config(planned: PlannedModel) -> "PretrainedConfig":
    """Return the config of the merged model."""
    from transformers import AutoConfig

    folder = planned.opened.base.folder
    check_counts(read_config(folder), len(planned.merge.base), f"config.json of '{folder}'")
    config: PretrainedConfig = AutoConfig.from_pretrained(folder)
    set_vocabulary(config, planned.merge)
    return config


def capacities(memory: Mapping[str, str]) -> dict[str, int]:
    """Return the bytes of each device that a plan is for.

    Args:
        memory (`Mapping[str, str]`): What each device has, such as `{"0": "24GB", "cpu": "64GiB"}`. If it is empty, what
            is free on this machine.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If a device or a size is not one.
    """
    from accelerate.utils.modeling import convert_file_size_to_int, get_max_memory

    if not memory:
        return {str(device): int(nbytes) for device, nbytes in get_max_memory().items()}
    found = {}
    for device, text in memory.items():
        place = device_of(device)
        try:
            found[place] = int(text) if text.isdigit() else convert_file_size_to_int(text)
        except ValueError as error:
            raise ConfigError(f"The memory of '{device}' is '{text}'; give for instance 24GB or 24GiB.") from error
    return found


def device_of(text: str) -> str:
    """Return how a plan calls a device: the number of a GPU, or `cpu`.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If it is neither.
    """
    name = text.removeprefix("cuda:")
    if name == "cuda":
        return "0"
    if name.isdigit() or name in (CPU, "mps"):
        return name
    raise ConfigError(f"'{text}' is no device of a plan. Give the number of a GPU, or cpu.")


def is_accelerator(place: str) -> bool:
    """Check whether a place is a device of its own, and not the CPU's memory or the disk."""
    return place not in (CPU, DISK)


def _quantizer(quantize: Quantize | None) -> Any:
    if quantize is None:
        return None
    from transformers import BitsAndBytesConfig
    from transformers.quantizers.auto import AutoHfQuantizer

    options: dict[str, bool] = {f"load_in_{quantize}": True}
    return AutoHfQuantizer.from_config(BitsAndBytesConfig(**options), pre_quantized=False)


def _key(place: str) -> str | int:
    """Return how transformers calls a place."""
    return int(place) if place.isdigit() else place


def _place_of(name: str, devices: Mapping[str, Any]) -> str:
    """Return the place of a tensor: that of the innermost module which has one."""
    module = name
    while module and module not in devices:
        module = module.rpartition(".")[0]
    return str(devices[module])


@contextmanager
def _quiet() -> Iterator[None]:
    """Do not warn of devices that a plan is for."""
    logs = [logging.getLogger(name) for name in _LOGS]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
