"""The weighted sum as one LoRA, against the merge itself and in PEFT's hands."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from dem_hub import DEMModel, DistributionVector
from dem_hub.cli.app import main
from dem_hub.errors import AdapterError, ConfigError
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opened_recipe import OpenedRecipe
from dem_hub.merging.opening import open_base_and_vectors
from dem_hub.models.lora_export import export_adapter
from tests.support.other_readers import READERS, read_as
from tests.support.tiny_models import Models, Zoo, load_tensors, make_adapter

FAMILIES = ["llama-tied", "gpt2"]


def opened(base: Path, vectors: dict[str, float]) -> OpenedRecipe:
    return open_base_and_vectors(VectorSource(str(base)), vectors)


def in_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)
    return dict(model.merge_and_unload().named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_by_concatenation(zoo: Zoo, family: str, tmp_path: Path) -> None:
    base = zoo.models(family, "float32").base
    vectors = {str(zoo.vector(family, "float32", "lowrank")): 0.7, str(zoo.adapter(family)): -0.4}
    made = export_adapter(opened(base, vectors), tmp_path / "sum")
    assert (set(made.ranks), made.error, made.left_out) == ({4 + 3}, 0.0, ())
    expected = dict(DEMModel.from_pretrained(base, vectors=vectors, dtype="float32").named_parameters())
    for name, tensor in in_peft(base, tmp_path / "sum").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)
    again = DEMModel.from_pretrained(
        base, vectors={str(tmp_path / "sum"): 1.0}, dtype="float32"
    )  # it is a vector like any other
    for name, tensor in again.named_parameters():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rank", [0, -3, 1.5, True])
def test_a_rank_that_keeps_nothing_is_refused(zoo: Zoo, llama: Models, tmp_path: Path, rank: Any) -> None:
    with pytest.raises(ConfigError, match=f"rank is {rank}; it must be a whole number from 1"):
        export_adapter(opened(llama.base, {str(zoo.vector("llama-tied")): 0.5}), tmp_path / "sum", rank=rank)
    assert not (tmp_path / "sum").exists()


def test_truncated_with_its_error(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    """A full fine-tune at a rank: matrices are approximated, norms and embeddings left out, and both count as error."""
    vectors = {
        str(zoo.vector("llama-tied", "bfloat16", "dense")): 0.5,
        str(zoo.vector("llama-tied", "bfloat16", "lowrank")): 0.5,
    }
    recipe = opened(llama.base, vectors)
    made = export_adapter(recipe, tmp_path / "sum", rank=6)
    assert set(made.ranks) == {6}
    assert "model.embed_tokens.weight" in made.left_out
    assert "model.norm.weight" in made.left_out
    base = load_tensors(llama.base)
    merge = recipe.merge(recipe.recipe)
    adapter = DistributionVector.from_pretrained(tmp_path / "sum")
    squares = errors = 0.0
    for name in base:
        exact = sum(
            (
                c * DistributionVector.from_pretrained(path).decode(name, llama.base).double()
                for path, c in vectors.items()
            )
        )
        assert isinstance(exact, torch.Tensor)
        difference = exact - adapter.decode(name, llama.base).double()
        squares, errors = squares + float(exact.square().sum()), errors + float(difference.square().sum())
        if name.endswith("q_proj.weight"):
            best = torch.linalg.svdvals(exact)[6:].square().sum()
            assert float(difference.square().sum()) == pytest.approx(float(best), rel=1e-3)
    assert made.error == pytest.approx((errors / squares) ** 0.5, rel=1e-4)
    assert len(merge.base) == len(base)


def test_a_rank_that_is_enough_is_exact(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    vectors = {str(zoo.vector("llama-tied", "bfloat16", "lowrank")): 0.5}
    assert export_adapter(opened(llama.base, vectors), tmp_path / "sum", rank=9).error == 0.0


def test_what_is_no_lora_is_refused(zoo: Zoo, llama: Models, tmp_path: Path) -> None:
    vectors = {str(zoo.vector("llama-tied", "bfloat16", "dense")): 0.5}
    with pytest.raises(AdapterError) as caught:
        export_adapter(opened(llama.base, vectors), tmp_path / "sum")
    text = str(caught.value)
    assert "'model.norm.weight' [32] is in no module that takes a LoRA" in text
    assert "'model.layers.0-1.mlp.up_proj.weight' [48, 32] is not of low rank" in text
    assert "Give a rank" in text
    assert not (tmp_path / "sum").exists()


@pytest.mark.parametrize("options", [[], ["--peft"]])
def test_from_a_shell(
    zoo: Zoo, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    """PEFT's format is the default, and may be named."""
    vector = zoo.vector("llama-tied", "bfloat16", "dense")
    command = [
        "export",
        *options,
        str(llama.base),
        "--vector",
        f"{vector}=0.5",
        "-o",
        str(tmp_path / "sum"),
        "--rank",
        "4",
    ]
    assert main(command) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path}/sum: rank 4, relative error 0.")
    assert second.startswith("left out, as no LoRA can change them: ")
    in_peft(llama.base, tmp_path / "sum")


MODULES = {
    "llama-tied": (["q_proj", "v_proj"], ["q_proj", "o_proj", "down_proj"]),
    "gpt2": (["c_attn"], ["c_attn", "c_proj", "c_fc"]),
}


def two_adapters(zoo: Zoo, family: str, folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, float]:
    """Two adapters of other ranks and alphas, which have some of their modules in common."""
    base = zoo.models(family, "float32").base
    for name, rank, modules in zip("ab", (5, 2), MODULES[family], strict=True):
        options = {"target_modules": modules, "r": rank, "lora_alpha": 3 * rank, "fan_in_fan_out": family == "gpt2"}
        make_adapter(base, folder / name, **options)
        tensors = {key: factor.to(dtype) for key, factor in load_tensors(folder / name, "adapter_model").items()}
        save_file(tensors, folder / name / "adapter_model.safetensors")
    return {str(folder / "a"): 0.7, str(folder / "b"): -0.4}


def expected_deltas(base: Path, vectors: dict[str, float]) -> dict[str, torch.Tensor]:
    """The sum of what PEFT merges for each adapter alone, in float64."""
    deltas: dict[str, torch.Tensor] = {}
    for path, coefficient in vectors.items():
        for name, delta in read_as("peft", Path(path), base).items():
            deltas[name] = deltas.get(name, torch.zeros_like(delta)) + coefficient * delta
    return deltas


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("rank", [None, 3])
def test_one_rank_is_right_in_every_reader(
    zoo: Zoo, tmp_path: Path, family: str, reader: str, rank: int | None
) -> None:
    """PEFT, vLLM and llama.cpp take the scale of a module from other places, and must find the same."""
    base = zoo.models(family, "float32").base
    vectors = two_adapters(zoo, family, tmp_path)
    made = export_adapter(opened(base, vectors), tmp_path / "sum", rank=rank)
    assert set(made.ranks) == {rank or 5 + 2}
    if rank is None:
        assert_as_sum(base, vectors, read_as(reader, tmp_path / "sum", base))
    else:
        peft = read_as("peft", tmp_path / "sum", base)
        for name, delta in read_as(reader, tmp_path / "sum", base).items():
            torch.testing.assert_close(delta, peft[name], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("reader", ["peft", "vllm"])
def test_a_rank_pattern_takes_fewer_bytes(zoo: Zoo, tmp_path: Path, reader: str) -> None:
    base = zoo.models("llama-tied", "float32").base
    vectors = two_adapters(zoo, "llama-tied", tmp_path)
    made = export_adapter(opened(base, vectors), tmp_path / "sum", rank_pattern=True)
    export_adapter(opened(base, vectors), tmp_path / "padded")
    assert set(made.ranks) == {5, 2, 5 + 2}
    assert_as_sum(base, vectors, read_as(reader, tmp_path / "sum", base))
    sizes = [(tmp_path / name / "adapter_model.safetensors").stat().st_size for name in ("sum", "padded")]
    assert sizes[0] < sizes[1]
    again = export_adapter(opened(base, {str(tmp_path / "padded"): 1.0}), tmp_path / "again", rank_pattern=True)
    assert sorted(again.ranks) == sorted(made.ranks)  # zeros of a padded input are left out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_the_dtype_is_that_of_the_inputs(zoo: Zoo, tmp_path: Path, dtype: torch.dtype) -> None:
    base = zoo.models("llama-tied", "float32").base
    vectors = two_adapters(zoo, "llama-tied", tmp_path, dtype)
    made = export_adapter(opened(base, vectors), tmp_path / "sum")
    factors = load_tensors(tmp_path / "sum", "adapter_model")
    assert {factor.dtype for factor in factors.values()} == {dtype}
    assert f"torch.{made.dtype}" == str(dtype)
    exact = expected_deltas(base, vectors)
    squares = errors = 0.0
    for name, delta in read_as("llama.cpp", tmp_path / "sum", base).items():
        squares += float(exact[name].square().sum())
        errors += float((delta - exact[name]).square().sum())
    assert made.error == pytest.approx((errors / squares) ** 0.5, rel=1e-3, abs=1e-6)
    assert (made.error > 0) == (dtype != torch.float32)


def test_the_dtype_of_a_mixture_is_float32_and_can_be_chosen(zoo: Zoo, tmp_path: Path) -> None:
    base = zoo.models("llama-tied", "float32").base
    vectors = two_adapters(zoo, "llama-tied", tmp_path)
    first = next(iter(vectors))
    tensors = {key: factor.bfloat16() for key, factor in load_tensors(Path(first), "adapter_model").items()}
    save_file(tensors, Path(first) / "adapter_model.safetensors")
    assert export_adapter(opened(base, vectors), tmp_path / "sum").dtype == "float32"
    assert export_adapter(opened(base, vectors), tmp_path / "sum", dtype="bfloat16").dtype == "bfloat16"
    assert {factor.dtype for factor in load_tensors(tmp_path / "sum", "adapter_model").values()} == {torch.bfloat16}
    with pytest.raises(ConfigError, match="dtype is 'float8'; choose one of float32, float16, bfloat16"):
        export_adapter(opened(base, vectors), tmp_path / "sum", dtype="float8")
    with pytest.raises(AdapterError, match=r"has factors of up to .*, too large for torch.float16"):
        export_adapter(opened(base, {first: 1e9}), tmp_path / "large", dtype="float16")
    assert not (tmp_path / "large").exists()


def assert_as_sum(base: Path, vectors: dict[str, float], deltas: dict[str, torch.Tensor]) -> None:
    expected = expected_deltas(base, vectors)
    assert set(deltas) == set(expected)
    for name, delta in deltas.items():
        torch.testing.assert_close(delta, expected[name], rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
