"""Planned bytes are those of the model that transformers really loads."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMModel
from dem_hub.errors import ConfigError
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.planned import PlannedModel
from dem_hub.planning.placement import capacities, device_of, empty_model
from tests.support.families import FAMILIES
from tests.support.new_tokens import make_base
from tests.support.tiny_models import Zoo

QUANTIZED = {"4bit": {"load_in_4bit": True}, "8bit": {"load_in_8bit": True}}


def planned(base: Path, **vectors: float) -> PlannedModel:
    return PlannedModel.of(open_base_and_vectors(VectorSource.parse(base), vectors, headers_only=True))


def bytes_of(model: torch.nn.Module) -> int:
    """All that a model keeps: parameters and buffers, each once, and the scales of quantised weights."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    for parameter in model.parameters():
        state: Any = getattr(parameter, "quant_state", None)
        if state is not None:
            total += sum(part.numel() * part.element_size() for part in (state.absmax, state.code))
        scales = getattr(parameter, "SCB", None)
        if scales is not None:
            total += scales.numel() * scales.element_size()
    return total


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", ["llama-tied", "llama-untied", "gpt2", "bert", "mixtral", "qwen2-moe"])
def test_bytes_of_a_loaded_model(zoo: Zoo, family: str, dtype: str) -> None:
    base = zoo.models(family).base
    model = DEMModel.from_pretrained(base, vectors={}, dtype=dtype)
    empty = empty_model(planned(base), getattr(torch, dtype), None)
    assert sum(empty.sizes().values()) == bytes_of(model)
    assert empty.place("cpu", {}) == {"cpu": bytes_of(model)}


def test_parts_that_stay_in_float32(tmp_path: Path) -> None:
    """transformers does not load all of a T5 in float16."""
    FAMILIES["t5"].make(True).save_pretrained(tmp_path)
    model = DEMModel.from_pretrained(tmp_path, vectors={}, dtype="float16")
    assert sum(empty_model(planned(tmp_path), torch.float16, None).sizes().values()) == bytes_of(model)
    assert len({parameter.dtype for parameter in model.parameters()}) == 2


@pytest.mark.parametrize("quantize", QUANTIZED)
def test_bytes_of_a_quantised_model(zoo: Zoo, quantize: Any) -> None:
    from transformers import BitsAndBytesConfig

    base = zoo.models("llama-untied").base
    config = BitsAndBytesConfig(**QUANTIZED[quantize])
    model = DEMModel.from_pretrained(base, vectors={}, dtype=torch.float32, quantization_config=config)
    assert sum(empty_model(planned(base), torch.float32, quantize).sizes().values()) == bytes_of(model)


@pytest.mark.parametrize("share", [0.9, 2.5])
def test_what_transformers_offloads(zoo: Zoo, tmp_path: Path, share: float) -> None:
    """The planned bytes in memory are those of a load with the same `max_memory`, and the rest is on the disk."""
    base = zoo.models("llama-untied").base
    empty = empty_model(planned(base), torch.float32, None)
    total = sum(empty.sizes().values())
    limit = round(share * total)
    model = DEMModel.from_pretrained(
        base,
        vectors={},
        dtype="float32",
        device_map="auto",
        max_memory={"cpu": limit},
        offload_folder=tmp_path,
    )
    parts = empty.place("auto", {"cpu": limit})
    in_memory = [parameter for parameter in model.parameters() if parameter.device.type == "cpu"]
    assert sum(parts.values()) == total
    # Of a module on the disk the buffers stay in memory.
    kept = 4 * sum(map(torch.numel, in_memory))
    assert kept <= parts["cpu"] <= kept + sum(buffer.nbytes for buffer in model.buffers())
    assert ("disk" in parts) == (share < 1)


def test_gpus_that_are_not_here(zoo: Zoo, caplog: pytest.LogCaptureFixture) -> None:
    empty = empty_model(planned(zoo.models("llama-untied").base), torch.float32, None)
    total = sum(empty.sizes().values())
    parts = empty.place("auto", {"0": 2 * total, "1": 2 * total, "cpu": 2 * total})
    assert sorted(parts) == ["0", "1"]
    assert sum(parts.values()) == total
    assert not caplog.records


def test_what_the_loader_refuses(zoo: Zoo) -> None:
    """Four bits are not divided between a GPU and the CPU."""
    empty = empty_model(planned(zoo.models("llama-untied").base), torch.float32, "4bit")
    total = sum(empty.sizes().values())
    with pytest.raises(ConfigError, match="transformers does not load it so: Some modules are dispatched on the CPU"):
        empty.place("auto", {"0": round(0.9 * total), "cpu": 9 * total})


def test_new_tokens_count(zoo: Zoo, tmp_path: Path) -> None:
    """A vector with more tokens makes the embeddings larger."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dem_hub import DistributionVector

    models = zoo.models("llama-untied")
    base = make_base(models.base, tmp_path / "base", 64)
    grown = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<a>", "<b>"])
    grown.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for saved in (grown, tokenizer):
        saved.save_pretrained(tmp_path / "grown")
    DistributionVector.extract(base, tmp_path / "grown", codec="dense").save_pretrained(tmp_path / "vector")
    vector = str(tmp_path / "vector")
    model = DEMModel.from_pretrained(base, vectors={vector: 0.5})
    assert model.config.vocab_size == 66
    assert sum(empty_model(planned(base, **{vector: 0.5}), torch.bfloat16, None).sizes().values()) == bytes_of(model)


def test_capacities_are_read_as_accelerate_reads_them() -> None:
    assert capacities({"0": "24GB", "cuda:1": "24GiB", "cpu": "1000"}) == {"0": 24 * 10**9, "1": 24 << 30, "cpu": 1000}
    assert capacities({})["cpu"] > 0


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        ({"tpu": "24GB"}, "'tpu' is no device of a plan"),
        ({"0": "much"}, "The memory of '0' is 'much'; give for instance 24GB or 24GiB."),
    ],
    ids=["device", "size"],
)
def test_what_is_no_capacity(memory: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        capacities(memory)


def test_names_of_devices() -> None:
    assert [device_of(name) for name in ("cuda", "cuda:3", "7", "cpu")] == ["0", "3", "7", "cpu"]
