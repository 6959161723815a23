"""The weighted sum as one LoRA, against the merge itself and in PEFT's hands."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from dem_hub import DEMModel, DistributionVector
from dem_hub.cli.app import main
from dem_hub.errors import AdapterError
from dem_hub.hub.references import VectorSource
from dem_hub.merging.opening import OpenedRecipe, open_base_and_vectors
from dem_hub.models.lora_export import export_adapter
from tests.support.tiny_models import Models, Zoo, load_tensors

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
    assert "'model.layers.0.mlp.up_proj.weight' [48, 32] is not of low rank" in text
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
    assert first.startswith(f"{tmp_path}/sum: rank 4 to 4, relative error 0.")
    assert second.startswith("left out, as no LoRA can change them: ")
    in_peft(llama.base, tmp_path / "sum")
