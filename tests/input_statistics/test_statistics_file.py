"""The two files of input statistics: what is written is read, and what is damaged is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dem_hub.errors import CheckpointError, ConfigError, NotFoundError
from dem_hub.files.names import INPUT_STATISTICS, INPUT_STATISTICS_TENSORS
from dem_hub.hub.hashes import digest
from dem_hub.input_statistics.moments import Moments
from dem_hub.input_statistics.statistics_file import InputStatistics, LayerInput


@pytest.fixture
def statistics() -> InputStatistics:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(6, 2, generator=generator).double())[0]
    attention = Moments(vectors, torch.tensor([3.0, 1.0]).double(), torch.rand(6, generator=generator).double())
    tokens = Moments.of_diagonal(torch.tensor([0.25, 0.75]).double())
    return InputStatistics((LayerInput(("k", "q"), attention), LayerInput(("embed",), tokens)), 40, "0123456789abcdef")


def test_what_is_saved_is_read(statistics: InputStatistics, tmp_path: Path) -> None:
    statistics.save_pretrained(tmp_path)
    read = InputStatistics.from_pretrained(tmp_path)
    assert (read.tokens, read.data) == (40, "0123456789abcdef")
    assert sorted(read.moments) == ["embed", "k", "q"]
    assert read.moments["k"] is read.moments["q"]
    # Eigenvectors are in bfloat16.
    torch.testing.assert_close(read.moments["q"].dense(), statistics.moments["q"].dense(), rtol=0, atol=0.03)
    torch.testing.assert_close(read.moments["embed"].dense(), statistics.moments["embed"].dense())


@pytest.mark.parametrize("gain", [None, -0.25])
def test_the_gain_is_kept(statistics: InputStatistics, tmp_path: Path, gain: float | None) -> None:
    replace(statistics, gain=gain).save_pretrained(tmp_path)
    assert InputStatistics.from_pretrained(tmp_path).gain == gain


def test_files_of_before_there_was_a_gain_are_read(statistics: InputStatistics, tmp_path: Path) -> None:
    statistics.save_pretrained(tmp_path)
    record = json.loads((tmp_path / INPUT_STATISTICS).read_text())
    del record["gain"]
    (tmp_path / INPUT_STATISTICS).write_text(json.dumps(record))
    assert InputStatistics.from_pretrained(tmp_path).gain is None


def test_the_same_statistics_are_the_same_bytes(statistics: InputStatistics, tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        statistics.save_pretrained(folder)
    for name in (INPUT_STATISTICS, INPUT_STATISTICS_TENSORS):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_none_are_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no input statistics"):
        InputStatistics.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"tokens": 0}, "tokens is 0"),
        ({"gain": "large"}, "gain"),
        ({"tokens": "40"}, "tokens"),
        ({"inputs": {"k": ["q"]}}, "'k'"),
        ({"inputs": {"k": "k"}}, "inputs"),
        ({"inputs": {"k": ["k", "q"], "q": ["q"]}}, "more than one input"),
        ({"format_version": 99}, "Upgrade"),
        ({"unknown": 1}, "unknown"),
    ],
    ids=str,
)
def test_a_damaged_record_is_refused(
    statistics: InputStatistics, tmp_path: Path, change: dict[str, object], match: str
) -> None:
    statistics.save_pretrained(tmp_path)
    path = tmp_path / INPUT_STATISTICS
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError, match=match):
        InputStatistics.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "match"),
    [
        ("k::rest", torch.full((6,), float("nan")), "NaN"),
        ("k::rest", torch.full((6,), -1.0), "negative"),
        ("k::values", torch.tensor([-1.0, 1.0]), "negative"),
        ("k::vectors", torch.zeros(5, 2, dtype=torch.bfloat16), "shapes"),
        ("k::rest", torch.zeros(2, 3), "shapes"),
    ],
    ids=["nan", "negative-rest", "negative-values", "short", "matrix"],
)
def test_moments_that_no_inputs_have_are_refused(
    statistics: InputStatistics, tmp_path: Path, name: str, values: torch.Tensor, match: str
) -> None:
    statistics.save_pretrained(tmp_path)
    path = tmp_path / INPUT_STATISTICS_TENSORS
    save_file(load_file(path) | {name: values}, path)
    record = tmp_path / INPUT_STATISTICS
    record.write_text(json.dumps(json.loads(record.read_text()) | {"sha256": digest(path)}))
    with pytest.raises(CheckpointError, match=match):
        InputStatistics.from_pretrained(tmp_path)


def test_other_tensors_are_refused(statistics: InputStatistics, tmp_path: Path) -> None:
    statistics.save_pretrained(tmp_path)
    path = tmp_path / INPUT_STATISTICS_TENSORS
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match="not the file"):
        InputStatistics.from_pretrained(tmp_path)
