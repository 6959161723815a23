"""What must be the same on a CUDA device as on the CPU. The tests run on the CPU too, so that they are known to work."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dem_hub import DEMModel, DistributionVector, VectorSource, search_coefficients
from dem_hub.checkpoints.lazy import InMemory
from dem_hub.codecs import to_dense
from dem_hub.codecs.component import Component
from dem_hub.input_statistics.gathering import gather
from dem_hub.merging.merge import Merge
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.export import export
from dem_hub.models.planned import PlannedModel
from dem_hub.numerics.rounding import round_to
from dem_hub.numerics.slices import full_index
from tests.codecs.test_conformance import VARIANTS, codec_of, encode, pair
from tests.input_statistics.test_gathering import opened, windows
from tests.models.helpers import base_and_two_vectors, same_tensors, state_of
from tests.support.tiny_models import Zoo

CPU = torch.device("cpu")
ROW = torch.tensor([[1, 7, 9, 11, 30]])
no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, no_gpu])])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def load(zoo: Zoo, device_map: Any, dtype: str = "float32", coefficients: Sequence[float] = (0.4, 0.3)) -> Any:
    base, *vectors = base_and_two_vectors(zoo, "llama-tied")
    weights = dict(zip(vectors, coefficients, strict=True))
    return DEMModel.from_pretrained(base, vectors=weights, dtype=dtype, device_map=device_map).eval()


def merge_of(zoo: Zoo) -> Merge:
    base, first, second = base_and_two_vectors(zoo, "llama-tied")
    recipe = open_base_and_vectors(VectorSource(str(base)), {first: 0.4, second: 0.3})
    return recipe.merge(recipe.recipe)


def count_different(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Return the share of elements that differ: sums differ in their last bits, so a few are rounded otherwise."""
    different = sum(int((first.cpu() != second.cpu()).sum()) for first, second in pairs)
    return different / sum(first.numel() for first, _ in pairs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(513, 77), (70_001,), (3, 65, 129)], ids=str)
def test_rounding_draws_the_same_bits(device: torch.device, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    total = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    index = full_index(shape)
    here = round_to(total.clone(), dtype, 7, "weight", index, shape)
    there = round_to(total.to(device), dtype, 7, "weight", index, shape)
    assert there.device.type == device.type
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_load_agrees_with_the_cpu(zoo: Zoo, device: torch.device, dtype: str) -> None:
    there = load(zoo, {"": str(device)}, dtype)
    pairs = list(zip(load(zoo, None, dtype).parameters(), there.parameters(), strict=True))
    assert all(other.device.type == device.type for _, other in pairs)
    if dtype == "float32":
        for ours, other in pairs:
            torch.testing.assert_close(other.cpu(), ours, rtol=2**-23, atol=0)  # one unit in the last place
    else:
        assert count_different(pairs) <= 1e-3  # of 17,000 elements; the promise is 1e-4 of many


def test_a_slice_is_that_of_the_whole(zoo: Zoo, device: torch.device) -> None:
    merge = merge_of(zoo)
    name = "model.layers.0.mlp.up_proj.weight"
    whole = merge.tensor(name, full_index(merge.shape(name)), device, torch.bfloat16)
    index = (slice(7, 41), slice(3, 30))
    assert count_different([(merge.tensor(name, index, device, torch.bfloat16), whole[index])]) <= 2e-3


def test_set_coefficients_is_a_fresh_load(zoo: Zoo, device: torch.device) -> None:
    _, first, second = base_and_two_vectors(zoo, "llama-tied")
    model = load(zoo, {"": str(device)}, "bfloat16", (0.9, -0.2))
    model.dem.set_coefficients({first: 0.4, second: 0.3})
    assert same_tensors(state_of(model), state_of(load(zoo, {"": str(device)}, "bfloat16")))


@pytest.mark.parametrize("variant", VARIANTS)
def test_codecs_decode_to_the_same_delta(device: torch.device, variant: str) -> None:
    """Packed parts go to the device and are unpacked there: the same elements kept, the same values."""
    base, finetuned = pair((30, 500), torch.bfloat16)
    stored = Component(codec_of(variant), encode(variant, base, finetuned), (30, 500))
    index = (slice(7, 29), slice(33, 470))
    here = to_dense(stored.decode(InMemory(base), index), base[index])
    there = to_dense(stored.decode(InMemory(base), index, device), base[index].to(device))
    assert there.device.type == device.type
    if variant.startswith(("lowrank", "lrsign")):  # products add in another order
        torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-8)
    else:
        assert torch.equal(there.cpu(), here)


@pytest.mark.parametrize("codec", ["auto", "lrsign", "sign", "int4"])
def test_extraction_is_as_good(zoo: Zoo, device: torch.device, codec: str) -> None:
    """Encoded on the device, as it is by default where there is one, a vector has the errors that it has on the CPU."""
    models = zoo.models("llama-tied")
    vectors = [DistributionVector.extract(models.base, models.full, codec=codec, device=each) for each in (CPU, device)]
    here, there = (vector.config.tensors for vector in vectors if vector.config is not None)
    assert here.keys() == there.keys()
    for name, record in here.items():
        assert there[name].relative_error == pytest.approx(record.relative_error, rel=1e-2, abs=1e-6)


def test_two_streams(zoo: Zoo, device: torch.device) -> None:
    """Two threads, each with a stream of its own, merge at the same time what one merges alone."""
    merge = merge_of(zoo)
    names = sorted(merge.base)

    def merged(names: Sequence[str]) -> list[Tensor]:
        stream: AbstractContextManager[Any] = nullcontext()
        if device.type == "cuda":
            stream = torch.cuda.stream(torch.cuda.Stream())
        with stream:
            found = [merge.tensor(name, full_index(merge.shape(name)), device, torch.bfloat16) for name in names]
            return [tensor.cpu() for tensor in found]

    alone = merged(names)
    with ThreadPoolExecutor(2) as pool:
        for _ in range(5):
            for together in pool.map(merged, [names, names]):
                assert all(torch.equal(first, second) for first, second in zip(alone, together, strict=True))


def test_a_model_on_cpu_and_device(zoo: Zoo, device: torch.device) -> None:
    rest = {"model.layers.1": str(device), "model.norm": str(device), "model.rotary_emb": str(device)}
    parts = {"model.embed_tokens": str(device), "lm_head": str(device), "model.layers.0": "cpu", **rest}
    there = load(zoo, parts)
    with torch.no_grad():
        found = there(input_ids=ROW.to(device)).logits.cpu()
        expected = load(zoo, None)(input_ids=ROW).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_four_bits_are_those_of_the_merged_model(zoo: Zoo, device: torch.device, tmp_path: Path) -> None:
    """Merged in float32 and then quantized, as plain transformers quantizes an export in float32."""
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    four_bits = {"quantization_config": BitsAndBytesConfig(load_in_4bit=True), "device_map": {"": str(device)}}
    base, first, second = base_and_two_vectors(zoo, "llama-tied")
    weights = {first: 0.4, second: 0.3}
    export(
        PlannedModel.of(open_base_and_vectors(VectorSource(str(base)), weights), dtype="float32"), tmp_path / "merged"
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32, **four_bits)
    ours = DEMModel.from_pretrained(base, vectors=weights, dtype=torch.float32, **four_bits)
    packed = [
        (first, second)
        for first, second in zip(ours.parameters(), theirs.parameters(), strict=True)
        if first.dtype == torch.uint8
    ]
    assert len(packed) == 14
    assert count_different(packed) <= 1e-3


def test_a_search_finds_the_same(zoo: Zoo, device: torch.device) -> None:
    base, *vectors = base_and_two_vectors(zoo, "llama-tied")
    rows = [{"input_ids": window.input_ids} for window in windows([12] * 8)]
    here, there = (
        search_coefficients(base, vectors, {"rows": rows}, held_out=0, max_forward=4, device_map={"": str(each)})
        for each in (CPU, device)
    )
    assert there.num_forward == here.num_forward
    assert there.loss == pytest.approx(here.loss, rel=1e-5)
    # The loss is flat around its minimum, so that the last bits of the logits move the minimum a little.
    assert there.coefficients == pytest.approx(here.coefficients, abs=0.02)


def test_input_statistics_are_the_same(zoo: Zoo, device: torch.device) -> None:
    model, base = opened(zoo, "llama-untied")
    here = gather(model, base.architecture, windows([9, 4]))
    there = gather(model.to(device), base.architecture, windows([9, 4]))
    for key, moments in here.moments.items():
        scale = float(moments.dense().abs().max())
        torch.testing.assert_close(there.moments[key].dense(), moments.dense(), rtol=0, atol=1e-5 * scale)
