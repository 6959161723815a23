"""The widest float dtype of a device: float64, or float32 on Apple's GPUs and some of Intel's, which have no other.

Merges, and what runs a model, work on such devices. Extraction does not, because it measures small errors of sums.
"""

import torch
from torch import Tensor

from dem_hub.errors import ConfigError


def widest(device: torch.device) -> torch.dtype:
    """Return the dtype that a device adds up in: float64 if it has that, else float32."""
    if device.type == "mps":
        return torch.float32
    # Of Intel's GPUs, those of desktops and laptops have no float64.
    if device.type == "xpu" and not torch.xpu.get_device_properties(device).has_fp64:
        return torch.float32
    return torch.float64


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device, in float32 if it is wider than what the device has."""
    if tensor.dtype == torch.float64:
        return tensor.to(widest(device)).to(device)
    return tensor.to(device)


def device_with_float64(device: str | torch.device | None) -> torch.device:
    """Return the device that was asked for; by default the accelerator if it has float64, else the CPU.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If the device that was asked for has no float64.
    """
    if device is not None:
        chosen = torch.device(device)
        if widest(chosen) != torch.float64:
            raise ConfigError(f"The device '{chosen}' has no float64, which deltas are measured in. Use device='cpu'.")
        return chosen
    if torch.accelerator.is_available():
        accelerator = torch.accelerator.current_accelerator()
        if accelerator is not None and widest(accelerator) == torch.float64:
            return accelerator
    return torch.device("cpu")
