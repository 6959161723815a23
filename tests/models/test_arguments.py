"""Arguments of transformers' `from_pretrained`: dtypes, devices, offload, quantization."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dem_hub import DEMModel
from dem_hub.errors import CoefficientError, ConfigError
from tests.models.helpers import base_and_two_vectors, same_tensors, state_of
from tests.support.tiny_models import Models, Zoo


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (None, torch.bfloat16),
        ("auto", torch.bfloat16),
        ("float32", torch.float32),
        (torch.float16, torch.float16),
        ("bfloat16", torch.bfloat16),
    ],
    ids=str,
)
def test_dtype(llama: Models, zoo: Zoo, dtype: Any, expected: torch.dtype) -> None:
    model = DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 0.5}, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {expected}
    assert model.dem.config.dtype == str(expected).removeprefix("torch.")


def test_no_such_dtype(llama: Models) -> None:
    with pytest.raises(ConfigError, match="dtype is 'float31'; give 'auto', a torch.dtype, or the name of one"):
        DEMModel.from_pretrained(llama.base, vectors={}, dtype="float31")


@pytest.mark.parametrize("device_map", ["auto", "cpu", {"": "cpu"}], ids=str)
def test_device_map(llama: Models, zoo: Zoo, device_map: Any) -> None:
    vectors = {str(zoo.vector("llama-tied")): 0.5}
    mapped = DEMModel.from_pretrained(llama.base, vectors=vectors, device_map=device_map)
    if torch.cuda.is_available():
        mapped = mapped.cpu()
    assert same_tensors(state_of(mapped), state_of(DEMModel.from_pretrained(llama.base, vectors=vectors)))


def test_offload_to_disk(llama: Models, zoo: Zoo, tmp_path: Path) -> None:
    devices = {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "disk",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    }
    vectors = {str(zoo.vector("llama-tied")): 0.5}
    offloaded = DEMModel.from_pretrained(llama.base, vectors=vectors, device_map=devices, offload_folder=tmp_path)
    whole = DEMModel.from_pretrained(llama.base, vectors=vectors)
    tokens = torch.arange(10)[None]
    with torch.no_grad():
        assert torch.equal(offloaded(tokens).logits, whole(tokens).logits)
    with pytest.raises(CoefficientError, match=r"(?s)'model.layers.1.* is offloaded.*Load it anew"):
        offloaded.dem.set_coefficients(dict.fromkeys(vectors, 0.2))


def test_other_arguments_of_transformers(llama: Models, zoo: Zoo) -> None:
    vectors = {str(zoo.vector("llama-tied")): 0.5}
    model, info = DEMModel.from_pretrained(
        llama.base,
        vectors=vectors,
        attn_implementation="eager",
        output_loading_info=True,
        use_cache=False,
        low_cpu_mem_usage=True,
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config._attn_implementation == "eager"
    assert model.config.use_cache is False


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine with a GPU")
def test_a_device_that_is_not_there(zoo: Zoo) -> None:
    with pytest.raises(ConfigError, match="device_map is 'cuda', which is no device of this machine"):
        DEMModel.from_pretrained(
            zoo.models("llama-tied").base, vectors={zoo.vector("llama-tied"): 0.4}, device_map="cuda"
        )


@pytest.mark.filterwarnings("ignore")
def test_quantized_model(zoo: Zoo) -> None:
    from bitsandbytes.functional import quantize_4bit
    from transformers import BitsAndBytesConfig

    base, first, _ = base_and_two_vectors(zoo, "llama-tied")
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.float32)
    model = DEMModel.from_pretrained(base, vectors={first: 0.5}, quantization_config=quantization, dtype=torch.float32)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.uint8
    weight = model.model.layers[0].mlp.up_proj.weight
    merged = (
        DEMModel.from_pretrained(base, vectors={first: 0.5}, dtype=torch.float32).model.layers[0].mlp.up_proj.weight
    )
    expected, _ = quantize_4bit(
        merged.data, blocksize=weight.quant_state.blocksize, quant_type=weight.quant_state.quant_type
    )
    assert torch.equal(weight.data, expected)
    with pytest.raises(
        CoefficientError,
        match=r"is quantised \(.*bitsandbytes.*cannot be merged again in place. Load it anew with the new coefficients",
    ):
        model.dem.set_coefficients({first: 0.2})


@pytest.mark.parametrize("form", [str, Path, None], ids=["text", "path", "object"])
def test_config_of_another_place(llama: Models, zoo: Zoo, tmp_path: Path, form: Any) -> None:
    """As in transformers, `config` is a folder or a config."""
    from transformers import LlamaConfig

    config = LlamaConfig.from_pretrained(llama.base)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 77.0}
    config.save_pretrained(tmp_path / "other")
    given = config if form is None else form(tmp_path / "other")
    model = DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 0.5}, config=given)
    assert model.config.rope_parameters["rope_theta"] == 77.0


def test_no_state_dict_is_the_bases_own(llama: Models, zoo: Zoo) -> None:
    vectors = {str(zoo.vector("llama-tied")): 0.5}
    model = DEMModel.from_pretrained(llama.base, vectors=vectors, state_dict=None, variant=None, gguf_file=None)
    assert same_tensors(state_of(model), state_of(DEMModel.from_pretrained(llama.base, vectors=vectors)))


def test_the_meta_device_is_refused(llama: Models, zoo: Zoo) -> None:
    vectors = {str(zoo.vector("llama-tied")): 0.5}
    with torch.device("meta"), pytest.raises(ConfigError, match="The default device is 'meta'.*Load outside of it"):
        DEMModel.from_pretrained(llama.base, vectors=vectors)
