"""Adapters of mlx-lm: names, shapes and products; and, where mlx-lm is installed, the logits under it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dem_hub import DEMModel
from dem_hub.cli.app import main
from tests.serving.test_gguf_adapter import exact, gemma, make_base, make_vectors, mistral, options
from tests.support import families


def gemma3(tied: bool) -> Any:
    import transformers as t

    # mlx-lm looks for a layer of full attention, and has its place from the second key.
    layers = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window_pattern": 2}
    config = t.Gemma3TextConfig(**families.TEXT, **layers, head_dim=8, sliding_window=8, tie_word_embeddings=tied)
    return t.Gemma3ForCausalLM(config)


MODELS = {
    "llama": families.llama,
    "mistral": mistral,
    "qwen2": families.qwen2,
    "qwen3": families.qwen3,
    "gemma": gemma,
    "gemma2": families.gemma2,
    "gemma3": gemma3,
}


@pytest.fixture(params=MODELS)
def make(request: pytest.FixtureRequest) -> Callable[[bool], Any]:
    return MODELS[request.param]  # type: ignore[no-any-return]


def test_the_product_is_the_sum(make: Callable[[bool], Any], tmp_path: Path) -> None:
    """`LoRALinear` adds `scale * (x @ lora_a) @ lora_b`, and is put around the modules in `keys`."""
    base = make_base(make, tmp_path / "base")
    vectors = make_vectors(base, tmp_path)
    assert main(["export", str(base), *options(vectors), "--mlx", "-o", str(tmp_path / "sum")]) == 0
    config = json.loads((tmp_path / "sum" / "adapter_config.json").read_text())
    lora = config["lora_parameters"]
    factors = load_file(tmp_path / "sum" / "adapters.safetensors")
    assert (config["fine_tune_type"], config["num_layers"]) == ("lora", 2)
    assert set(factors) == {f"{key}.{end}" for key in lora["keys"] for end in ("lora_a", "lora_b")}
    expected = exact(base, vectors)
    assert {f"{key}.weight" for key in lora["keys"]} == set(expected)
    for key in lora["keys"]:
        a = factors[f"{key}.lora_a"].double()
        b = factors[f"{key}.lora_b"].double()
        assert (a.shape[1], b.shape[0]) == (lora["rank"], lora["rank"])
        # The factors are float32.
        torch.testing.assert_close(lora["scale"] * (a @ b).T, expected[f"{key}.weight"], rtol=1e-5, atol=1e-7)


def test_the_logits_under_mlx(make: Callable[[bool], Any], tmp_path: Path) -> None:
    """Also on Linux, where MLX runs on the CPU."""
    mlx = pytest.importorskip("mlx.core")
    utils = pytest.importorskip("mlx_lm.utils")
    base = make_base(make, tmp_path / "base")
    vectors = make_vectors(base, tmp_path)
    assert main(["export", str(base), *options(vectors), "--mlx", "-o", str(tmp_path / "sum")]) == 0
    tokens = [[1, 5, 9, 12, 30, 7]]
    model, _ = utils.load_model(base)
    plain = torch.tensor(model(mlx.array(tokens)).tolist())
    model = utils.load_adapters(model, str(tmp_path / "sum"))
    logits = torch.tensor(model(mlx.array(tokens)).tolist())
    with torch.no_grad():
        expected = DEMModel.from_pretrained(base, vectors=vectors, dtype="float32")(torch.tensor(tokens)).logits
    # Two libraries in float32. The change is a hundred times larger.
    assert float((logits - expected).abs().max()) < 0.01 * float((plain - expected).abs().max())


def test_other_architectures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.support.tiny_models import make_adapter

    base = make_base(families.gpt2, tmp_path / "base")
    make_adapter(base, tmp_path / "vector", target_modules=["c_attn"], r=2, fan_in_fan_out=True)
    assert main(["export", str(base), "--vector", f"{tmp_path}/vector=1", "--mlx", "-o", str(tmp_path / "sum")]) == 2
    assert "is GPT2LMHeadModel; adapters of mlx-lm are written for Gemma2ForCausalLM" in capsys.readouterr().err


def test_one_format_takes_the_place_of_the_other(tmp_path: Path) -> None:
    """PEFT's and mlx-lm's configs have one name: a folder never has the weights of one and the config of the other."""
    base = make_base(families.llama, tmp_path / "base")
    vectors = make_vectors(base, tmp_path)
    command = ["export", str(base), *options(vectors), "-o", str(tmp_path / "sum"), "--overwrite"]
    for given, weights in (("--peft", "adapter_model"), ("--mlx", "adapters"), ("--peft", "adapter_model")):
        assert main([*command, given]) == 0
        assert [path.stem for path in (tmp_path / "sum").glob("*.safetensors")] == [weights]
