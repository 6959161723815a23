"""A base as QLoRA saw it: bits of transformers' own dequantization, and logits of PEFT on a base in 4 bits."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from dem_hub import DEMConfig, DEMModel, DistributionVector
from dem_hub.cli.app import main
from dem_hub.errors import ConfigError
from dem_hub.merging.base_quantization import BaseQuantization
from tests.support.tiny_models import Models, load_tensors, make_adapter, shake

pytestmark = pytest.mark.filterwarnings("ignore:.*tie_word_embeddings")

IDS = torch.tensor([[5, 6, 7, 8, 9, 3, 44], [9, 10, 11, 12, 13, 14, 15]])


def base_of(family: str) -> Any:
    """A tiny model whose matrices have whole blocks of 64: bitsandbytes dequantizes no others rightly on the CPU."""
    torch.manual_seed(0)
    llama = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
             "num_key_value_heads": 2, "initializer_range": 0.2}  # fmt: skip
    if family == "gpt2":
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=64, n_embd=64, n_layer=1, n_head=2, n_positions=64)
        )
    if family == "mixtral":
        experts = {"num_local_experts": 2, "num_experts_per_tok": 1}
        return transformers.MixtralForCausalLM(transformers.MixtralConfig(**llama, **experts))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama, tie_word_embeddings=family == "tied"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {}
    for family in ("untied", "tied", "gpt2", "mixtral"):
        folders[family] = tmp_path_factory.mktemp(family)
        base_of(family).save_pretrained(folders[family])
    return folders


@pytest.fixture(scope="module")
def adapter(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    make_adapter(bases["untied"], folder, target_modules="all-linear", r=3)
    return folder


def state_of(model: Any) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(ours: Any, theirs: Any) -> None:
    first, second = state_of(ours), state_of(theirs)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


CONFIGS = {
    "nf4": {"bnb_4bit_quant_type": "nf4"},
    "fp4": {"bnb_4bit_quant_type": "fp4"},
    "double": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "skipped": {"bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": ["lm_head", "down_proj", "c_proj"]},
    "all": {"bnb_4bit_quant_type": "nf4", "llm_int8_skip_modules": []},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("family", "settings"),
    [
        *(("untied", settings) for settings in CONFIGS),
        ("tied", "nf4"),
        ("gpt2", "double"),
        ("gpt2", "skipped"),
        ("mixtral", "fp4"),
    ],
)
def test_the_bits_are_those_of_transformers(
    bases: dict[str, Path], family: str, settings: str, dtype: torch.dtype
) -> None:
    """The same layers are quantized, each as transformers quantizes it, and dequantized to the same bits."""
    config = BitsAndBytesConfig(load_in_4bit=True, **CONFIGS[settings])
    theirs = AutoModelForCausalLM.from_pretrained(bases[family], quantization_config=config, dtype=dtype).dequantize()
    name = str(dtype).removeprefix("torch.")
    quantization = BaseQuantization.of(config)
    ours = DEMModel.from_pretrained(
        bases[family],
        vectors={},
        base_quantized=BaseQuantization(**{**quantization.to_dict(), "dtype": name}),
        dtype=dtype,
    )
    expected = state_of(theirs)
    for name, module in theirs.named_modules():
        # transformers leaves linear layers in the place of GPT-2's Conv1D.
        if family == "gpt2" and isinstance(module, torch.nn.Linear) and "c_" in name:
            expected[f"{name}.weight"] = expected[f"{name}.weight"].T
    values = state_of(ours)
    assert values.keys() == expected.keys()
    assert [name for name in values if not torch.equal(values[name], expected[name])] == []


@pytest.mark.parametrize("family", ["tied", "gpt2"])
def test_a_tied_head_has_no_quantized_form_of_its_own(bases: dict[str, Path], family: str) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, llm_int8_skip_modules=[])
    with pytest.raises(ConfigError, match="no tensors of their own on disk(.|\n)*'lm_head.weight'(.|\n)*skip_modules"):
        DEMModel.from_pretrained(bases[family], vectors={}, base_quantized=config)


def test_rows_that_are_no_whole_blocks(llama: Models) -> None:
    """Blocks lie over the ends of rows, as on a GPU: by the formula, since bitsandbytes is wrong there on the CPU."""
    from bitsandbytes.functional import get_4bit_type, quantize_4bit

    ours = state_of(DEMModel.from_pretrained(llama.base, vectors={}, base_quantized="nf4"))
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.down_proj.weight"):
        weight = load_tensors(llama.base)[name]
        packed, state = quantize_4bit(weight, blocksize=64, quant_type="nf4")
        codes = torch.stack([packed.view(-1) >> 4, packed.view(-1) & 15], 1).view(-1).long()
        values = get_4bit_type("nf4", device="cpu")[codes] * state.absmax.repeat_interleave(64)
        assert torch.equal(ours[name], values.view(weight.shape).to(weight.dtype))


@pytest.mark.parametrize("double", [False, True], ids=["once", "twice"])
def test_logits_of_peft_on_a_base_in_4_bits(bases: dict[str, Path], adapter: Path, double: bool) -> None:
    """The model that was trained: the base in 4 bits with the adapter beside it, against the merged one."""
    from peft import PeftModel

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=double)
    base = AutoModelForCausalLM.from_pretrained(bases["untied"], quantization_config=config, dtype=torch.float32)
    # In training: for generation on some CPUs, bitsandbytes rounds its scales to bfloat16.
    trained = PeftModel.from_pretrained(base, adapter).train()
    with torch.no_grad():
        expected = trained(IDS).logits
    merged = DEMModel.from_pretrained(
        bases["untied"], vectors={str(adapter): 1.0}, base_quantized=config, dtype=torch.float32
    )
    plain = DEMModel.from_pretrained(bases["untied"], vectors={str(adapter): 1.0}, dtype=torch.float32)
    with torch.no_grad():
        # Two orders of the same sums in float32, of logits of some units.
        torch.testing.assert_close(merged(IDS).logits, expected, atol=2e-5, rtol=1e-5)
        assert float((plain(IDS).logits - expected).abs().max()) > 0.1


def test_the_compute_dtype_rounds(bases: dict[str, Path]) -> None:
    plain, rounded = (
        state_of(DEMModel.from_pretrained(bases["untied"], vectors={}, base_quantized=text))
        for text in ("nf4", "nf4,compute_dtype=bfloat16")
    )
    for name, values in plain.items():
        expected = values.bfloat16().float() if "proj" in name else values
        assert torch.equal(rounded[name], expected)


def test_a_recipe_keeps_it(
    bases: dict[str, Path], adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reload and an export have the same bits, also by a transformers that leaves out other layers."""
    options = {"vectors": {str(adapter): 0.5}, "base_quantized": "nf4,double_quant", "dtype": "bfloat16"}
    model = DEMModel.from_pretrained(bases["untied"], **options)
    model.dem.save_pretrained(tmp_path / "recipe")
    written = json.loads((tmp_path / "recipe" / "config.json").read_text())
    assert written["base_quantized"] == {
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": True,
        "bnb_4bit_compute_dtype": "float32",
        "dtype": None,
        "llm_int8_skip_modules": ["lm_head"],
    }
    assert DEMConfig.from_pretrained(tmp_path / "recipe") == model.dem.config
    monkeypatch.setattr("transformers.quantizers.base.get_keys_to_not_convert", lambda _: ["down_proj"])
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "recipe"), model)
    assert main(["merge", str(tmp_path / "recipe"), "-o", str(tmp_path / "merged")]) == 0
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), model)
    assert DEMConfig.from_pretrained(tmp_path / "merged").base_quantized == model.dem.config.base_quantized
    # As a base of another round, it has these bits, too.
    assert_same(DEMModel.from_pretrained(tmp_path / "recipe", vectors={}), model)


def test_the_command_line(bases: dict[str, Path], adapter: Path, tmp_path: Path) -> None:
    words = ["merge", bases["untied"], "--vector", f"{adapter}=1", "--base-quantized", "nf4,double_quant"]
    assert main([*map(str, words), "-o", str(tmp_path / "merged")]) == 0
    model = DEMModel.from_pretrained(bases["untied"], vectors={str(adapter): 1.0}, base_quantized="nf4,double_quant")
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), model)


def test_without_it_a_recipe_is_as_before(bases: dict[str, Path], adapter: Path) -> None:
    recipe = DEMModel.from_pretrained(bases["untied"], vectors={str(adapter): 1.0}).dem.config
    assert "base_quantized" not in recipe.to_dict()


def test_changes_in_place(bases: dict[str, Path], adapter: Path) -> None:
    options = {"base_quantized": "nf4", "dtype": "bfloat16"}
    model = DEMModel.from_pretrained(bases["untied"], vectors={str(adapter): 0.5}, **options)
    model.dem.set_coefficients({str(adapter): 0.25})
    assert_same(model, DEMModel.from_pretrained(bases["untied"], vectors={str(adapter): 0.25}, **options))


@pytest.mark.parametrize("codec", ["exact", "dense"])
def test_a_vector_is_taken_from_the_base_as_it_is(bases: dict[str, Path], tmp_path: Path, codec: str) -> None:
    """Only the base is quantized: a vector of a whole fine-tune is the difference to the unquantized one."""
    finetuned = AutoModelForCausalLM.from_pretrained(bases["untied"], dtype="float32")
    base = state_of(finetuned)
    shake(finetuned, 1)
    finetuned.save_pretrained(tmp_path / "finetuned")
    options = {} if codec == "exact" else {"dtype": "float32"}
    vector = DistributionVector.extract(bases["untied"], tmp_path / "finetuned", codec=codec, **options)
    vector.save_pretrained(tmp_path / "vector")
    quantized = state_of(DEMModel.from_pretrained(bases["untied"], vectors={}, base_quantized="nf4"))
    merged = state_of(
        DEMModel.from_pretrained(bases["untied"], vectors={str(tmp_path / "vector"): 1.0}, base_quantized="nf4")
    )
    for name, values in state_of(finetuned).items():
        expected = quantized[name].double() + (values.double() - base[name].double())
        # The delta in float32, and a rounding of the sum.
        torch.testing.assert_close(merged[name].double(), expected, atol=1e-7, rtol=2e-7)


def test_the_card_says_it(bases: dict[str, Path], adapter: Path) -> None:
    from dem_hub.merging.cards import recipe_card

    options = {"vectors": {str(adapter): 1.0}, "base_quantized": "nf4,double_quant,compute_dtype=bfloat16"}
    recipe = DEMModel.from_pretrained(bases["untied"], **options).dem.config
    for merged in (False, True):
        text = recipe_card("me/my-dem", recipe, {}, merged=merged).text
        assert "linear layers, without `lm_head`, are first quantized to 4 bits and dequantized" in text
        assert "(QLoRA: nf4, double quantization, computed in bfloat16)" in text


def test_what_is_shown_of_a_recipe_says_it(bases: dict[str, Path], adapter: Path) -> None:
    """Also what differs between two recipes."""
    from dem_hub.merging.report import difference_report, recipe_report

    plain, quantized = (
        DEMModel.from_pretrained(bases["untied"], vectors={str(adapter): 1.0}, base_quantized=given).dem.config
        for given in (None, "nf4")
    )
    assert "base in nf4, computed in float32" in str(recipe_report(quantized))
    assert "base in" not in str(recipe_report(plain))
    assert "nf4, computed in float32, without lm_head" in str(difference_report({"one": plain, "other": quantized}))


def test_where_it_cannot_be_said(
    bases: dict[str, Path], adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    DEMModel.from_pretrained(bases["untied"], vectors={str(adapter): 1.0}, base_quantized="nf4").dem.save_pretrained(
        tmp_path / "recipe"
    )
    assert main(["info", "--mergekit", str(tmp_path / "recipe")]) == 2
    with caplog.at_level(logging.WARNING):
        assert main(["export", str(tmp_path / "recipe"), "-o", str(tmp_path / "adapter")]) == 0
    assert "The recipe adds its vectors to a quantized base (nf4, computed in float32)" in caplog.text
    ours, theirs = (load_tensors(folder, "adapter_model") for folder in (tmp_path / "adapter", adapter))
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ("int8", "is 'int8'; known are nf4 and fp4"),
        ("nf4,single", "'single' is no setting.*double_quant"),
        ("nf4,dtype=int4", "is 'int4'; it must be one of float32"),
        (8, "base_quantized is 8; give 'nf4'"),
        (BitsAndBytesConfig(load_in_8bit=True), "load_in_4bit=True"),
    ],
    ids=str,
)
def test_what_is_no_quantization_is_refused(bases: dict[str, Path], given: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        DEMModel.from_pretrained(bases["untied"], vectors={}, base_quantized=given)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"bnb_4bit_quant_type": "nf5"}, "config.json: base_quantized: .*'nf5'"),
        ({"bnb_4bit_blocksize": 32}, "base_quantized has unknown key 'bnb_4bit_blocksize'"),
        ({"llm_int8_skip_modules": "lm_head"}, "llm_int8_skip_modules 'lm_head', which is not a list of texts"),
    ],
    ids=str,
)
def test_a_record_that_is_not_understood_is_refused(
    bases: dict[str, Path], adapter: Path, tmp_path: Path, changes: dict[str, Any], match: str
) -> None:
    recipe = DEMModel.from_pretrained(bases["untied"], vectors={str(adapter): 1.0}, base_quantized="nf4").dem.config
    data = recipe.to_dict()
    data["base_quantized"] |= changes
    with pytest.raises(ConfigError, match=match):
        DEMConfig.from_dict(data, "config.json", tmp_path)
