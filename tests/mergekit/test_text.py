"""A recipe as mergekit's YAML: the commands in it, and then mergekit or this library, give the recipe's own merge."""

import importlib.util
import shlex
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from dem_hub import DEMConfig, DistributionVector
from dem_hub.cli.app import main
from dem_hub.hub.references import BaseRecord
from dem_hub.merging.records import VectorRecord
from tests.cli.running import run
from tests.mergekit.cases import REFERENCE, run_mergekit
from tests.support.tiny_models import Zoo

HAS_MERGEKIT = importlib.util.find_spec("mergekit") is not None
# Where mergekit is installed, what it imports warns of this.
pytestmark = pytest.mark.filterwarnings("ignore:numpy.core is deprecated:DeprecationWarning")

RUNS = {"layers 0-1": 0.25, "layers 2-2": 0.9, "rest": -0.5}
KINDS = {"attention": 0.9, "mlp": 0.2, "rest": 0.4}
ADAPTER_KINDS = {"attention": 0.7, "mlp": -0.2}
COEFFICIENTS: dict[str, dict[str, Any]] = {
    "numbers": {"maths": 0.4, "lora": 0.3},
    "runs": {"maths": RUNS, "lora": {"layers 0-2": 0.3}},
    "kinds": {"maths": KINDS, "lora": ADAPTER_KINDS},
    "unused": {"maths": 0.0, "lora": 0.5, "grown": 0.0},
    "nothing": {"maths": 0.0},
    "tokens": {"maths": 0.4, "grown": 0.3},
}


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("vectors")
    for name in ("maths", "grown"):
        vector = DistributionVector.extract(REFERENCE / "base", REFERENCE / name, codec="dense")
        vector.save_pretrained(folder / name)
    return {"maths": folder / "maths", "grown": folder / "grown", "lora": REFERENCE / "lora"}


def save_recipe(base: Path, coefficients: Mapping[Path, Any], folder: Path, dtype: str | None = None) -> Path:
    records = tuple(VectorRecord(str(path), number) for path, number in coefficients.items())
    DEMConfig(BaseRecord(str(base)), records, dtype=dtype).save_pretrained(folder)
    return folder


def write_printed(recipe: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Print the YAML of a recipe, run the commands in its comments, and keep it."""
    text = run(capsys, "info", "--mergekit", recipe)
    for line in text.splitlines():
        words = shlex.split(line.removeprefix("#"))
        if line.startswith("#") and words[0] == "dem-hub":
            run(capsys, *words[1:])
    config = folder / "printed.yml"
    config.write_text(text)
    return config


def assert_same(got: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert set(got) == set(expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(got[key], tensor, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("case", COEFFICIENTS)
def test_the_config_gives_the_merge_of_the_recipe(
    case: str,
    vectors: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    wanted = {vectors[name]: number for name, number in COEFFICIENTS[case].items()}
    recipe = save_recipe(REFERENCE / "base", wanted, tmp_path / "recipe")
    run(capsys, "merge", recipe, "-o", tmp_path / "merged")
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    config = write_printed(recipe, tmp_path, capsys)
    run(capsys, "merge", config, "-o", tmp_path / "again")
    assert_same(load_file(tmp_path / "again" / "model.safetensors"), expected)
    if HAS_MERGEKIT:
        assert_same(run_mergekit(config, tmp_path / "by-mergekit"), expected)


@pytest.mark.parametrize("family", ["llama-tied", "gpt2", "bert"])
@pytest.mark.parametrize(
    "coefficient",
    [{"attention": 0.9, "mlp": 0.2, "embedding": 0.1, "other": -0.4}, {"layers 0-0": 0.2, "rest": 0.7}],
    ids=["kinds", "runs"],
)
def test_groups_of_any_family_become_filters(
    zoo: Zoo,
    family: str,
    coefficient: dict[str, float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    base = zoo.models(family, "float32").base
    recipe = save_recipe(base, {zoo.vector(family, "float32"): coefficient}, tmp_path / "recipe")
    run(capsys, "merge", recipe, "-o", tmp_path / "merged")
    run(capsys, "merge", write_printed(recipe, tmp_path, capsys), "-o", tmp_path / "again")
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    assert_same(load_file(tmp_path / "again" / "model.safetensors"), expected)


def test_the_dtype_and_the_names(vectors: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "a+b@c"
    shutil.copytree(REFERENCE / "lora", odd)
    recipe = save_recipe(REFERENCE / "base", {odd: 0.5}, tmp_path / "recipe", dtype="bfloat16")
    data = yaml.safe_load(run(capsys, "info", "--mergekit", recipe))
    assert (data["dtype"], data["out_dtype"]) == ("float32", "bfloat16")
    assert data["parameters"] == {"normalize": False}
    assert data["models"][1]["model"] == {"model": str(REFERENCE / "base"), "lora": {"path": str(odd)}}
    config = tmp_path / "printed.yml"
    config.write_text(yaml.safe_dump(data | {"out_dtype": "float32"}))
    run(capsys, "merge", config, "-o", tmp_path / "again")
    run(capsys, "merge", recipe, "--dtype", "float32", "-o", tmp_path / "merged")
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    assert_same(load_file(tmp_path / "again" / "model.safetensors"), expected)
    if HAS_MERGEKIT:
        assert_same(run_mergekit(config, tmp_path / "by-mergekit"), expected)


def test_what_mergekit_would_make_otherwise_is_refused(
    vectors: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    twin = tmp_path / "twin"
    DistributionVector.from_pretrained(vectors["grown"]).save_pretrained(twin)
    recipe = save_recipe(REFERENCE / "base", {vectors["grown"]: 0.4, twin: 0.3}, tmp_path / "recipe")
    assert main(["info", "--mergekit", str(recipe)]) == 2
    assert "2 models bring the token" in capsys.readouterr().err
    on_recipe = save_recipe(recipe, {REFERENCE / "lora": 0.5}, tmp_path / "second")
    assert main(["info", "--mergekit", str(on_recipe)]) == 2
    assert "which mergekit does not know" in capsys.readouterr().err
    assert main(["info", "--mergekit", str(recipe), str(recipe)]) == 2
    assert "one recipe" in capsys.readouterr().err
