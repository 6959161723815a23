"""What must be the same on a CUDA device as on the CPU; run where there is one."""

from pathlib import Path

import pytest
import torch

from dem_hub import DEMModel, DistributionVector
from dem_hub.checkpoints.lazy import InMemory
from dem_hub.codecs import get_codec, to_dense
from dem_hub.codecs.component import Component
from dem_hub.codecs.listing import OFFERED
from dem_hub.numerics.rounding import round_to
from dem_hub.numerics.slices import full_index

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("gpu")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        dtype="bfloat16",
    )
    base = LlamaForCausalLM(config).to(torch.bfloat16)
    base.save_pretrained(folder / "base")
    for name, codec in {"dense": {"codec": "dense"}, "lowrank": {"codec": "lowrank", "rank": 16}}.items():
        finetuned = LlamaForCausalLM.from_pretrained(folder / "base", dtype=torch.float32)
        with torch.no_grad():
            for parameter in finetuned.parameters():
                parameter.add_(torch.randn_like(parameter) * 1e-3)
        finetuned.save_pretrained(folder / f"{name}-finetuned")
        DistributionVector.extract(folder / "base", folder / f"{name}-finetuned", **codec).save_pretrained(
            folder / name
        )
    return {name: folder / name for name in ("base", "dense", "lowrank", "dense-finetuned")}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(513, 777), (70_001,), (3, 65, 129)], ids=str)
def test_rounding_draws_the_same_bits(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    total = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    index = full_index(shape)
    here = round_to(total.clone(), dtype, 7, "weight", index, shape)
    there = round_to(total.cuda(), dtype, 7, "weight", index, shape)
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_merge_agrees_with_the_cpu(folders: dict[str, Path], dtype: torch.dtype) -> None:
    vectors = {str(folders["dense"]): 0.4, str(folders["lowrank"]): 0.3}
    here = DEMModel.from_pretrained(folders["base"], vectors=vectors, dtype=dtype)
    there = DEMModel.from_pretrained(folders["base"], vectors=vectors, dtype=dtype, device_map="cuda")
    pairs = list(zip(here.parameters(), there.parameters(), strict=True))
    assert all(other.device.type == "cuda" for _, other in pairs)
    different = sum(int((ours != other.cpu()).sum()) for ours, other in pairs)
    assert different <= 1e-4 * sum(ours.numel() for ours, _ in pairs)


def test_set_coefficients_on_the_device_is_a_fresh_load(folders: dict[str, Path]) -> None:
    first, second = str(folders["dense"]), str(folders["lowrank"])
    model = DEMModel.from_pretrained(folders["base"], vectors={first: 0.9, second: -0.2}, device_map="cuda")
    model.dem.set_coefficients({first: 0.4, second: 0.3})
    fresh = DEMModel.from_pretrained(folders["base"], vectors={second: 0.3, first: 0.4}, device_map="cuda")
    assert all(torch.equal(ours, other) for ours, other in zip(model.parameters(), fresh.parameters(), strict=True))


def test_coefficient_one_of_a_dense_vector_is_the_fine_tune(folders: dict[str, Path]) -> None:
    from transformers import LlamaForCausalLM

    model = DEMModel.from_pretrained(
        folders["base"], vectors={str(folders["dense"]): 1.0}, dtype=torch.float32, device_map="cuda"
    )
    finetuned = LlamaForCausalLM.from_pretrained(folders["dense-finetuned"])
    for ours, other in zip(model.parameters(), finetuned.parameters(), strict=True):
        torch.testing.assert_close(ours.cpu(), other, rtol=2**-22, atol=0)  # two units in the last place


@pytest.mark.parametrize("codec", list(OFFERED))
def test_codecs_decode_to_the_same_delta(codec: str) -> None:
    """Packed parts go to the device and are unpacked there: the same elements kept, the same values."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(300, 500, generator=generator).bfloat16()
    finetuned = (base.float() + 1e-3 * torch.randn(300, 500, generator=generator)).bfloat16()
    made = get_codec(codec, {"sign": {"group": 6}, "lrsign": {"group": 6}, "random": {"density": 0.3}}.get(codec, {}))
    parts = {
        name: InMemory(part) for name, part in made.encode(finetuned.float() - base.float(), base, finetuned).items()
    }
    stored = Component(made, parts, (300, 500))
    index = (slice(17, 290), slice(33, 470))
    here = to_dense(stored.decode(InMemory(base), index), base[index])
    there = to_dense(stored.decode(InMemory(base), index, torch.device("cuda")), base[index].cuda())
    assert there.device.type == "cuda"
    if codec in ("lowrank", "lrsign"):  # products add in another order
        torch.testing.assert_close(there.cpu(), here, rtol=1e-5, atol=1e-8)
    else:
        assert torch.equal(there.cpu(), here)


def test_extraction_on_the_device(folders: dict[str, Path], tmp_path: Path) -> None:
    """Encoded on the GPU, as it is by default where there is one, a vector is as good."""
    for device in ("cpu", "cuda"):
        vector = DistributionVector.extract(folders["base"], folders["dense-finetuned"], device=device)
        assert vector.config is not None
        worst = max(record.relative_error for record in vector.config.tensors.values())
        assert worst < 1.5
