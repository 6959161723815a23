"""The default device is the CPU in the context, whatever the caller's is, and the caller's again afterwards."""

from contextlib import nullcontext

import pytest
import torch

from dem_hub.numerics.devices import cpu_by_default


@pytest.mark.parametrize("device", ["meta", "cpu", None])
@pytest.mark.parametrize("is_global", [True, False])
def test_the_cpu_is_the_default(device: str | None, is_global: bool) -> None:
    before = torch.get_default_device()
    context = nullcontext() if device is None or is_global else torch.device(device)
    try:
        if is_global:
            torch.set_default_device(device)
        with context:
            with cpu_by_default():
                assert torch.zeros(2).device.type == "cpu"
            assert torch.zeros(2).device.type == (device or "cpu")
    finally:
        torch.set_default_device(None)
    assert torch.get_default_device() == before


def test_nothing_watches_operations_where_the_cpu_is_the_default() -> None:
    with cpu_by_default():
        assert not torch.overrides._get_current_function_mode_stack()
