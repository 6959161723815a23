"""Adapters in GGUF, as the package `gguf` reads them back, against the merge that PEFT makes of the vectors."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from torch import Tensor

from dem_hub.checkpoints.base_model import Base
from dem_hub.cli.app import main
from dem_hub.hub.download import Resolved
from dem_hub.serving.gguf_adapter import permuted_rows, write_gguf
from dem_hub.serving.mlx_adapter import write_mlx
from tests.support import families
from tests.support.other_readers import read_as
from tests.support.tiny_models import make_adapter

# What llama.cpp calls the modules of a layer, in GGUF's specification.
NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def mistral(tied: bool) -> Any:
    import transformers as t

    return t.MistralForCausalLM(t.MistralConfig(**families.TEXT, head_dim=8, tie_word_embeddings=tied))


def gemma(tied: bool) -> Any:
    import transformers as t

    return t.GemmaForCausalLM(t.GemmaConfig(**families.TEXT, head_dim=8, tie_word_embeddings=tied))


MODELS = {
    "llama": (families.llama, "llama"),
    "mistral": (mistral, "llama"),
    "qwen2": (families.qwen2, "qwen2"),
    "qwen3": (families.qwen3, "qwen3"),
    "gemma": (gemma, "gemma"),
    "gemma2": (families.gemma2, "gemma2"),
    "gemma3": (families.gemma3_text, "gemma3"),
}


def make_base(make: Callable[[bool], Any], folder: Path, tied: bool = True) -> Path:
    torch.manual_seed(0)
    make(tied).save_pretrained(folder)
    return folder


def make_vectors(base: Path, folder: Path) -> dict[str, float]:
    """Two adapters of other ranks and modules."""
    make_adapter(base, folder / "maths", 0, target_modules=[name.split(".")[1] for name in NAMES], r=3, lora_alpha=6)
    make_adapter(base, folder / "chat", 1, target_modules=["q_proj", "k_proj", "down_proj"], r=2, lora_alpha=1)
    return {str(folder / "maths"): 0.4, str(folder / "chat"): -0.3}


def options(vectors: dict[str, float]) -> list[str]:
    return [word for path, number in vectors.items() for word in ("--vector", f"{path}={number}")]


def exact(base: Path, vectors: dict[str, float]) -> dict[str, Tensor]:
    deltas: dict[str, Tensor] = {}
    for path, coefficient in vectors.items():
        for name, delta in read_as("peft", Path(path), base).items():
            deltas[name] = deltas.get(name, torch.zeros_like(delta)) + coefficient * delta
    return deltas


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return the keys of a GGUF file, and the product of each pair of factors with llama.cpp's scale, in float64."""
    reader = gguf.GGUFReader(path)
    keys = {name: field.contents() for name, field in reader.fields.items()}
    factors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        factors[tensor.name] = torch.from_numpy(values.copy()).double()
    deltas = {}
    for name, b in factors.items():
        if name.endswith(".lora_b"):
            a = factors[name.removesuffix("b") + "a"]
            deltas[name.removesuffix(".lora_b")] = keys["adapter.lora.alpha"] / a.shape[0] * b @ a
    return keys, deltas


def in_llama_cpp(name: str, delta: Tensor, config: dict[str, Any], is_permuted: bool) -> tuple[str, Tensor]:
    """Return a delta as llama.cpp has it: row i of a head's first half is row 2 i there, and i of its second 2 i + 1."""
    layer, _, module = name.removeprefix("model.layers.").removesuffix(".weight").partition(".")
    if is_permuted and module.endswith(("q_proj", "k_proj")):
        heads = config["num_attention_heads" if module.endswith("q_proj") else "num_key_value_heads"]
        size = delta.shape[0] // heads
        moved = torch.empty_like(delta)
        for head in range(heads):
            for row in range(size // 2):
                moved[head * size + 2 * row] = delta[head * size + row]
                moved[head * size + 2 * row + 1] = delta[head * size + size // 2 + row]
        delta = moved
    return f"blk.{layer}.{NAMES[module]}.weight", delta


@pytest.mark.parametrize("name", MODELS)
def test_the_product_is_the_sum(tmp_path: Path, name: str) -> None:
    make, architecture = MODELS[name]
    base = make_base(make, tmp_path / "base")
    vectors = make_vectors(base, tmp_path)
    assert main(["export", str(base), *options(vectors), "--gguf", "-o", str(tmp_path / "sum.gguf")]) == 0
    keys, deltas = read(tmp_path / "sum.gguf")
    assert keys["general.architecture"] == architecture
    assert (keys["general.type"], keys["adapter.type"]) == ("adapter", "lora")
    config = json.loads((base / "config.json").read_text())
    expected = dict(
        in_llama_cpp(key, delta, config, architecture == "llama") for key, delta in exact(base, vectors).items()
    )
    assert set(deltas) == set(expected)
    for key, delta in deltas.items():
        # The factors are float32.
        torch.testing.assert_close(delta, expected[key], rtol=1e-5, atol=1e-7, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_dtype_can_be_chosen(tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_base(families.qwen2, tmp_path / "base")
    vectors = make_vectors(base, tmp_path)
    command = ["export", str(base), *options(vectors), "--gguf", "-o", str(tmp_path / "sum.gguf"), "--dtype", dtype]
    assert main(command) == 0
    told = float(capsys.readouterr().out.split("relative error ")[1].split(",")[0])
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(tmp_path / "sum.gguf").tensors}
    assert kinds == {{"float16": "F16", "bfloat16": "BF16"}[dtype]}
    expected = dict(in_llama_cpp(key, delta, {}, False) for key, delta in exact(base, vectors).items())
    deltas = read(tmp_path / "sum.gguf")[1]
    lost = sum(float((deltas[key] - delta).square().sum()) for key, delta in expected.items())
    whole = sum(float(delta.square().sum()) for delta in expected.values())
    assert told == pytest.approx((lost / whole) ** 0.5, rel=1e-2)


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_the_permutation_turns_no_head_into_another(heads: int) -> None:
    """Scores of attention are sums over a head's rows, so a permutation within the heads leaves each sum."""
    values = torch.randn(heads * 6, 4, dtype=torch.float64)
    permuted = permuted_rows(values, heads)
    for head in range(heads):
        rows = slice(head * 6, head * 6 + 6)
        assert sorted(permuted[rows].tolist()) == sorted(values[rows].tolist())


@pytest.mark.parametrize(
    "make", [families.gpt2, families.qwen2_moe, families.mixtral], ids=["gpt2", "qwen2-moe", "mixtral"]
)
def test_other_architectures_are_refused_with_the_way(
    tmp_path: Path, make: Callable[[bool], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    base = make_base(make, tmp_path / "base")
    vector = tmp_path / "vector"
    is_gpt2 = make is families.gpt2
    make_adapter(base, vector, target_modules=["c_attn" if is_gpt2 else "q_proj"], r=2, fan_in_fan_out=is_gpt2)
    assert main(["export", str(base), "--vector", f"{vector}=1", "--gguf", "-o", str(tmp_path / "sum.gguf")]) == 2
    told = capsys.readouterr().err
    assert "GGUF adapters are written for" in told and "convert_lora_to_gguf.py" in told
    assert not (tmp_path / "sum.gguf").exists()


def test_a_file_is_replaced_only_if_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = make_base(families.llama, tmp_path / "base")
    vectors = make_vectors(base, tmp_path)
    command = ["export", str(base), *options(vectors), "--gguf", "-o", str(tmp_path / "sum.gguf")]
    (tmp_path / "sum.gguf").write_text("mine")
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "sum.gguf").read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0
    assert read(tmp_path / "sum.gguf")[1]


@pytest.mark.parametrize("write", [write_gguf, write_mlx])
def test_a_full_disk_is_an_error_of_the_system_and_leaves_nothing(
    tmp_path: Path, write: Callable[[Path, Base, Path], None]
) -> None:
    """Wherever in the file it happens: numpy says nothing of what is lost when its buffer is emptied."""
    base = make_base(families.llama, tmp_path / "base")
    assert main(["export", str(base), *options(make_vectors(base, tmp_path)), "-o", str(tmp_path / "sum")]) == 0
    opened = Base(Resolved.local(base))
    write(tmp_path / "sum", opened, tmp_path / "whole")
    size = max(file.stat().st_size for file in [tmp_path / "whole", *(tmp_path / "whole").glob("*.safetensors")])
    before = set(tmp_path.iterdir())
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in (0, 4000, size // 2, size - 4):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, most))
        try:
            with pytest.raises(OSError, match="File too large"):
                write(tmp_path / "sum", opened, tmp_path / "target")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        assert set(tmp_path.iterdir()) == before


def test_scales(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter for each vector: scaled as printed and summed, they are the sum."""
    base = make_base(families.llama, tmp_path / "base")
    vectors = make_vectors(base, tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(base), *options(vectors), "--scales", "-o", "loras"]) == 0
    *_, arguments, request = capsys.readouterr().out.splitlines()
    assert arguments == "--lora-scaled loras/maths.gguf:0.4,loras/chat.gguf:-0.3"
    assert json.loads(request) == {"lora": [{"id": 0, "scale": 0.4}, {"id": 1, "scale": -0.3}]}
    total: dict[str, Tensor] = {}
    for part in arguments.removeprefix("--lora-scaled ").split(","):
        path, _, scale = part.rpartition(":")
        for key, delta in read(Path(path))[1].items():
            total[key] = total.get(key, torch.zeros_like(delta)) + float(scale) * delta
    config = json.loads((base / "config.json").read_text())
    expected = dict(in_llama_cpp(key, delta, config, True) for key, delta in exact(base, vectors).items())
    assert set(total) == set(expected)
    for key, delta in total.items():
        torch.testing.assert_close(delta, expected[key], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--gguf", "--mlx"], "--gguf and --mlx are different formats"),
        (["--peft", "--gguf"], "--peft and --gguf are different formats"),
        (["--mlx", "--scales"], "--mlx and --scales are different formats"),
        (["--gguf", "--rank-pattern"], "--rank-pattern is for PEFT adapters; with --gguf"),
        (["--scales", "--rank-pattern"], "--rank-pattern is for PEFT adapters; with --scales"),
    ],
)
def test_options_that_contradict_each_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], message: str
) -> None:
    assert main(["export", "org/base", *given, "-o", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
