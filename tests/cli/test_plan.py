"""`dem-hub plan`: what it prints, for people and for programs, and what it refuses."""

import json
from pathlib import Path

import pytest

from dem_hub.cli.app import main
from tests.cli.running import run
from tests.support.tiny_models import Models, Zoo

MEMORY = ["--memory", "0=24GB", "--memory", "cpu=64GB"]


@pytest.fixture
def vector(zoo: Zoo) -> Path:
    return zoo.vector("llama-tied", kind="lowrank")


def test_all_steps(llama: Models, vector: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "plan", llama.base, "--vector", vector, *MEMORY)
    lines = out.splitlines()
    assert lines[0].startswith("base: 20 tensors, ")
    assert [line.split()[0] for line in lines if line.endswith(" fits") and "  " in line] == [
        "load", "search", "search", "merge", "merge", "serve"
    ]  # fmt: skip
    assert (
        "  At most 13 forward passes over the search data, the last only for a baseline that is better, and 3 over the "
        "held-out data."
    ) in lines


def test_a_program_reads_it(llama: Models, vector: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A coefficient makes no difference, and the steps that are named are planned."""
    texts = [
        run(capsys, "plan", llama.base, "--vector", name, *MEMORY, "--load", "--merge", "--dtype", "float32", "--json")
        for name in (str(vector), f"{vector}=0.25")
    ]
    data, other = map(json.loads, texts)
    assert data["steps"]["load"] == other["steps"]["load"]
    assert list(data["steps"]) == ["load", "merge"]
    need = data["steps"]["load"]["needs"][0]
    assert (need["place"], need["keeps"] >= 4 * data["parameters"], need["verdict"]) == ("0", True, "fits")
    assert data["steps"]["merge"]["needs"][-1]["most"] > 4 * data["parameters"]


def test_ways_out(llama: Models, vector: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = run(capsys, "plan", llama.base, "--vector", vector, "--memory", "0=10kB", "--memory", "cpu=64GB", "--search")
    assert "search: does not fit\n" in out
    assert "  way out: --device-map cpu: " in out


def test_a_recipe_has_no_search(
    llama: Models, vector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dem_hub import DEMModel

    DEMModel.from_pretrained(llama.base, vectors={str(vector): 0.5}).dem.save_pretrained(tmp_path / "recipe")
    out = run(capsys, "plan", tmp_path / "recipe", *MEMORY)
    assert "serve: fits" in out
    assert "search:" not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--search"], "A search needs vectors: dem-hub plan BASE --vector ID --search."),
        (["--memory", "0"], "--memory '0' is not NAME=VALUE, such as cpu=64GB."),
        (["--dtype", "float31", "--load"], "float31"),
    ],
    ids=["search", "memory", "dtype"],
)
def test_refusals(
    llama: Models, vector: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = [] if arguments == ["--search"] else ["--vector", str(vector)]
    assert main(["plan", str(llama.base), *vectors, *arguments]) == 2
    assert said in capsys.readouterr().err
