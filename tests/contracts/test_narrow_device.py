"""What a device without float64 is asked for, such as Apple's GPUs: everything works there, and agrees with the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dem_hub import DEMModel, DistributionVector, search_coefficients
from dem_hub.checkpoints.lazy import InMemory
from dem_hub.codecs import to_dense
from dem_hub.codecs.component import Component
from dem_hub.errors import ConfigError
from dem_hub.input_statistics.gathering import gather
from dem_hub.models import places
from dem_hub.numerics.precision import device_with_float64, widest
from dem_hub.numerics.rounding import round_to
from dem_hub.numerics.slices import full_index
from tests.codecs.test_conformance import VARIANTS, codec_of, encode, pair
from tests.input_statistics.test_gathering import opened, windows
from tests.models.helpers import base_and_two_vectors
from tests.support.narrow_device import NarrowTensor, narrow_device
from tests.support.tiny_models import Zoo


def test_the_device_refuses_what_such_devices_refuse() -> None:
    with narrow_device() as device:
        there = torch.zeros(2, 3, device=device)
        assert there.add(1).cpu().tolist() == [[1.0] * 3] * 2
        refused = (
            lambda: torch.zeros(2, dtype=torch.float64, device=device),
            lambda: torch.zeros(2, dtype=torch.float64, device="cpu").to(device),
            lambda: there.double(),
            lambda: there.sum(dtype=torch.float64),
            lambda: there.to("cpu", torch.float64),
            lambda: there + torch.zeros(2, 3, device="cpu"),
            lambda: there.numpy(),
        )
        for ask in refused:
            with pytest.raises((TypeError, RuntimeError)):
                ask()


@pytest.mark.parametrize("variant", VARIANTS)
def test_codecs(variant: str) -> None:
    base, finetuned = pair((12, 200), torch.bfloat16)
    stored = Component(codec_of(variant), encode(variant, base, finetuned), (12, 200))
    index = (slice(3, 11), slice(17, 190))
    here = to_dense(stored.decode(InMemory(base), index), base[index])
    with narrow_device() as device:
        decoded = stored.decode(InMemory(base), index, device)
        there = to_dense(decoded, base[index].to(device)).cpu()
    torch.testing.assert_close(there, here, rtol=1e-6, atol=1e-8)  # sums of products in another order


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_draws_the_same_bits(dtype: torch.dtype) -> None:
    shape = (40, 51)
    total = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    here = round_to(total.clone(), dtype, 7, "weight", full_index(shape), shape)
    with narrow_device() as device:
        there = round_to(total.to(device), dtype, 7, "weight", full_index(shape), shape).cpu()
    assert torch.equal(there, here)


@contextmanager
def loading() -> Iterator[torch.device]:
    """Yield the device, and let transformers load in this thread, where it is. Its tensors count as ordinary ones."""
    with pytest.MonkeyPatch.context() as patch, narrow_device() as device:
        patch.setenv("HF_DEACTIVATE_ASYNC_LOAD", "1")
        patch.setattr(places, "Tensor", NarrowTensor)
        yield device


@pytest.mark.parametrize("family", ["llama-tied", "mixtral"])
def test_loads_and_changes(zoo: Zoo, family: str) -> None:
    base, first, second = base_and_two_vectors(zoo, family)
    expected = DEMModel.from_pretrained(base, vectors={first: 0.3, second: 0.6}, dtype="float32").state_dict()
    with loading() as device:
        weights = {first: 0.9, second: 0.1}
        model = DEMModel.from_pretrained(base, vectors=weights, dtype="float32", device_map={"": str(device)})
        assert {parameter.device for parameter in model.parameters()} == {device}
        model.dem.set_coefficients({first: 0.3, second: 0.6})
        found = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    # Sums in float32, so weights may be off by two units in the last place.
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=2**-22, atol=2**-30)


def test_a_search(zoo: Zoo) -> None:
    base, first, second = base_and_two_vectors(zoo, "llama-tied")
    rows = [{"input_ids": window.input_ids} for window in windows([12] * 8)]

    def search(**device: Any) -> dict[str, float]:
        found = search_coefficients(base, [first, second], {"rows": rows}, held_out=0, max_forward=4, **device)
        return dict(found.coefficients)

    expected = search()
    with loading() as device:
        assert search(device_map={"": str(device)}) == pytest.approx(expected, abs=1e-3)


def test_input_statistics(zoo: Zoo) -> None:
    model, base = opened(zoo, "llama-untied")
    expected = gather(model, base.architecture, windows([9, 4]))
    with loading() as device:
        there = type(model).from_pretrained(base.folder, device_map={"": str(device)})
        found = gather(there, base.architecture, windows([9, 4]))
    for key, moments in expected.moments.items():
        scale = float(moments.dense().abs().max())
        torch.testing.assert_close(found.moments[key].dense(), moments.dense(), rtol=0, atol=1e-5 * scale)


def test_extraction_is_refused_or_on_the_cpu(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    models = zoo.models("llama-tied")
    with narrow_device() as device, pytest.raises(ConfigError, match="'mps' has no float64.* Use device='cpu'"):
        DistributionVector.extract(models.base, models.full, device=device)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: device)
    assert device_with_float64(None) == torch.device("cpu")


@pytest.mark.parametrize("has_fp64", [True, False])
def test_an_intel_gpu_is_asked(has_fp64: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: SimpleNamespace(has_fp64=has_fp64))
    assert widest(torch.device("xpu")) == (torch.float64 if has_fp64 else torch.float32)
