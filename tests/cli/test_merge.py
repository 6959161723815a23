"""`dem-hub merge`: the same weights as in Python, in a folder or on the Hub."""

from pathlib import Path

import pytest
import torch

from dem_hub import DEMConfig, DEMModel
from dem_hub.cli.app import main
from tests.cli.running import run
from tests.fake_hub.server import Hub
from tests.support.published_repos import RECIPE, Published
from tests.support.tiny_models import Models, Zoo, load_tensors


def test_merge_base_and_vectors(zoo: Zoo, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = {str(zoo.vector("llama-tied", kind=kind)): c for kind, c in (("dense", 0.25), ("lossy", -0.5))}
    arguments = [part for name, c in vectors.items() for part in ("--vector", f"{name}={c}")]
    out = run(
        capsys,
        "merge",
        llama.base,
        *arguments,
        "-o",
        tmp_path / "merged",
        "--rounding",
        "nearest",
        "--dtype",
        "float16",
    )
    assert out == f"{tmp_path}/merged\n"
    expected = DEMModel.from_pretrained(llama.base, vectors=vectors, rounding="nearest", dtype="float16").state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_tensors(tmp_path / "merged").items())


def test_merge_a_recipe(zoo: Zoo, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = DEMModel.from_pretrained(llama.base, vectors={str(zoo.vector("llama-tied")): 0.4}, rounding_seed=3)
    model.dem.save_pretrained(tmp_path / "recipe")
    run(capsys, "merge", tmp_path / "recipe", "-o", tmp_path / "merged", "--max-shard-size", "10KB")
    assert (tmp_path / "merged" / "model.safetensors.index.json").is_file()
    assert all(
        torch.equal(tensor, model.state_dict()[name]) for name, tensor in load_tensors(tmp_path / "merged").items()
    )


def test_merge_onto_another_base_by_hand(
    zoo: Zoo, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["merge", llama.full, "--vector", f"{zoo.vector('llama-tied')}=0.5", "-o", tmp_path / "merged"]
    assert main([str(argument) for argument in arguments]) == 2
    capsys.readouterr()
    run(capsys, *arguments, "--allow-base-mismatch")


def test_recipes_keep_the_seed(zoo: Zoo, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(
        capsys,
        "merge",
        llama.base,
        "--vector",
        f"{zoo.vector('llama-tied')}=0.5",
        "-o",
        tmp_path / "m",
        "--rounding-seed",
        "9",
    )
    assert DEMConfig.from_pretrained(tmp_path / "m").rounding_seed == 9


@pytest.mark.parametrize("where", ["hub", "both", "dry"])
def test_merge_onto_the_hub(
    published: Published, hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    arguments = ["merge", RECIPE, "--push-to-hub", "ann/merged", "--private", "--max-shard-size", "8KB"]
    more = {"hub": [], "both": ["-o", tmp_path / "merged"], "dry": ["--dry-run"]}[where]
    lines = run(capsys, *arguments, *more).splitlines()
    if where == "dry":
        assert (lines, ("models", "ann/merged") in hub.store.repos) == ([], False)
        return
    assert lines[-1].startswith(f"{hub.endpoint}/ann/merged/commit/")
    assert lines[:-1] == ([str(tmp_path / "merged")] if where == "both" else [])
    assert hub.store.repos["models", "ann/merged"].private
    expected = DEMModel.from_pretrained(RECIPE).state_dict()
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained("ann/merged").state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_an_earlier_result_is_replaced_on_request_alone(
    zoo: Zoo, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "merged"
    vector = zoo.vector("llama-tied", "bfloat16", "lowrank")

    def merge(coefficient: float, *more: str) -> int:
        return main(["merge", str(llama.base), "--vector", f"{vector}={coefficient}", "-o", str(target), *more])

    (target / ".git").mkdir(parents=True)
    (target / "README.md").write_text("mine")
    assert merge(0.5) == 0
    first = (target / "model.safetensors").read_bytes()
    (target / "generation_config.json").write_text("{}")
    assert merge(0.5) == 0, "the same command again"
    assert "has this model already" in capsys.readouterr().err
    assert (target / "generation_config.json").read_text() == "{}"
    for more in ([], ["--dry-run"]):
        assert merge(0.25, *more) == 2
        assert (
            "holds a merged model already. Choose another folder, or replace it: --overwrite" in capsys.readouterr().err
        )
    assert (target / "model.safetensors").read_bytes() == first
    assert merge(0.25, "--overwrite") == 0
    assert (target / "model.safetensors").read_bytes() != first
    assert (target / "README.md").read_text() == "mine"
    (target / "model.safetensors").unlink()
    assert merge(0.5) == 0, "what a killed run left"
    assert (target / "model.safetensors").read_bytes() == first


@pytest.mark.parametrize("command", ["merge", "extract", "export"])
def test_a_folder_with_other_files(
    zoo: Zoo, llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / ".env").write_text("a key")
    vector = f"{zoo.vector('llama-tied', 'bfloat16', 'lowrank')}=0.5"
    arguments = [
        command,
        str(llama.base),
        *([str(llama.full)] if command == "extract" else ["--vector", vector]),
        "-o",
        str(target),
    ]
    assert main(arguments) == 2
    assert "holds files that dem_hub did not write ('.env'), and a" in capsys.readouterr().err
    assert [path.name for path in target.iterdir()] == [".env"]
    assert main([*arguments, "--overwrite"]) == 0
    assert (target / ".env").read_text() == "a key"
    assert main(arguments) == (2 if command == "export" else 0)


def test_a_vector_of_another_fine_tune_is_replaced_on_request_alone(
    llama: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def extract(finetuned: Path, *more: str) -> int:
        return main(["extract", str(llama.base), str(finetuned), "-o", str(tmp_path / "v"), "--codec", "dense", *more])

    assert extract(llama.full) == extract(llama.full) == 0
    first = (tmp_path / "v" / "vector_config.json").read_bytes()
    assert extract(llama.low) == 2
    assert "holds a vector already" in capsys.readouterr().err
    assert (tmp_path / "v" / "vector_config.json").read_bytes() == first
    assert extract(llama.low, "--overwrite") == 0
    assert (tmp_path / "v" / "vector_config.json").read_bytes() != first
