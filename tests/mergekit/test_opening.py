"""Configs of mergekit, merged here and by mergekit 0.1.5, in float32."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dem_hub import DEMConfig
from dem_hub.cli.app import main
from dem_hub.merging.cards import recipe_card
from tests.cli.running import run
from tests.mergekit.cases import CASES, REFERENCE, RESULTS, run_mergekit, write_config

HAS_MERGEKIT = importlib.util.find_spec("mergekit") is not None

# Where mergekit is installed, what it imports warns of this.
pytestmark = pytest.mark.filterwarnings("ignore:numpy.core is deprecated:DeprecationWarning")


@pytest.fixture(scope="module")
def results() -> dict[str, dict[str, Tensor]]:
    """What mergekit made of each config, by tensor."""
    results: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(RESULTS).items():
        case, _, key = name.partition("/")
        results.setdefault(case, {})[key] = tensor
    return results


def merge(config: Path, target: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Tensor]:
    run(capsys, "merge", config, "-o", target)
    return load_file(target / "model.safetensors")


def assert_same(merged: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(merged) == set(expected)
    for key, tensor in expected.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(merged[key], tensor, rtol=0, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("case", CASES)
def test_the_merge_is_that_of_mergekit(
    case: str, results: dict[str, dict[str, Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(CASES[case], tmp_path / "config.yml")
    assert_same(merge(config, tmp_path / "merged", capsys), results[case])


@pytest.mark.skipif(not HAS_MERGEKIT, reason="mergekit is not installed")
@pytest.mark.parametrize("case", CASES)
def test_the_results_are_those_of_the_mergekit_that_is_installed(
    case: str, results: dict[str, dict[str, Tensor]], tmp_path: Path
) -> None:
    assert_same(run_mergekit(write_config(CASES[case], tmp_path / "config.yml"), tmp_path / "merged"), results[case])


def test_the_merges_differ(results: dict[str, dict[str, Tensor]]) -> None:
    """A reference in which nothing is merged would prove nothing."""
    base = load_file(REFERENCE / "base" / "model.safetensors")
    key = "model.layers.1.mlp.up_proj.weight"
    changes = {case: (tensors[key] - base[key]).abs().max() for case, tensors in results.items()}
    assert min(changes.values()) > 1e-3


def test_the_dtype_of_the_result(
    results: dict[str, dict[str, Tensor]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`out_dtype` before `dtype`: the same sum, rounded once."""
    text = CASES["arithmetic"] + "out_dtype: bfloat16\n"
    run(
        capsys, "merge", write_config(text, tmp_path / "config.yml"), "--rounding", "nearest", "-o", tmp_path / "merged"
    )
    differ = total = 0
    for key, tensor in load_file(tmp_path / "merged" / "model.safetensors").items():
        expected = results["arithmetic"][key].bfloat16()
        assert tensor.dtype == torch.bfloat16
        differ += int((tensor != expected).sum())
        total += tensor.numel()
    assert differ <= 1e-3 * total  # mergekit's sum in float32 lies elsewhere by its last bits


@pytest.mark.parametrize("case", ["arithmetic", "ties"])
def test_the_recipe_of_a_config_says_what_was_merged(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names models, from which nothing is merged a second time; of TIES that they are changed first."""
    merge(write_config(CASES[case], tmp_path / "config.yml"), tmp_path / "merged", capsys)
    recipe = DEMConfig.from_pretrained(tmp_path / "merged")
    assert [Path(str(record.repo_id)).name for record in recipe.vectors] == ["maths", "chat"]
    card = recipe_card("me/merged", recipe, {}, merged=True).text
    assert ("changed by `ties` before they were summed" in card) == (case == "ties")
    (tmp_path / "again").mkdir()
    shutil.copy(tmp_path / "merged" / "dem_config.json", tmp_path / "again" / "config.json")
    assert main(["merge", str(tmp_path / "again"), "-o", str(tmp_path / "second")]) == 2
    assert "it is not a distribution vector. If it is a fine-tune" in capsys.readouterr().err
