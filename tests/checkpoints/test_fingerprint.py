"""The fingerprint does not depend on shards; it changes with a sampled byte, a name, a dtype or a shape."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dem_hub.checkpoints.fingerprint import SAMPLE_BYTES, SAMPLES, fingerprint, tensor_digests
from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.checkpoints.writer import write_file
from tests.support.tiny_models import Models, reshard

LARGE = 40_000  # bytes, above SAMPLES * SAMPLE_BYTES


def print_of(path: Path) -> str:
    return fingerprint(tensor_digests(Checkpoint(path)))


def written(path: Path, tensors: dict[str, Tensor]) -> str:
    write_file(path, tensors)
    return print_of(path)


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_independent_of_sharding(llama: Models, tmp_path: Path, shards: int) -> None:
    assert print_of(reshard(llama.base, tmp_path / "copy", shards)) == print_of(llama.base)


def test_fine_tune_is_another(llama: Models) -> None:
    assert len({print_of(llama.base), print_of(llama.full), print_of(llama.low)}) == 3


@pytest.mark.parametrize("place", range(SAMPLES))
@pytest.mark.parametrize("inside", [0, SAMPLE_BYTES - 1], ids=["first byte", "last byte"])
def test_every_sampled_place_counts(tmp_path: Path, place: int, inside: int) -> None:
    data = torch.zeros(LARGE, dtype=torch.uint8)
    before = written(tmp_path / "x", {"w": data})
    data[(LARGE - SAMPLE_BYTES) * place // (SAMPLES - 1) + inside] = 1
    assert written(tmp_path / "x", {"w": data}) != before


@pytest.mark.parametrize("element", [0, 1, 511, 1023])
def test_small_tensors_count_whole(tmp_path: Path, element: int) -> None:
    data = torch.zeros(1024)
    before = written(tmp_path / "x", {"w": data})
    data[element] = 1e-40
    assert written(tmp_path / "x", {"w": data}) != before


@pytest.mark.parametrize(
    "other",
    [
        {"v": torch.zeros(2, 3)},
        {"w": torch.zeros(3, 2)},
        {"w": torch.zeros(2, 3, dtype=torch.int32)},
        {"w": torch.zeros(2, 3), "b": torch.zeros(1)},
    ],
    ids=["name", "shape", "dtype", "another tensor"],
)
def test_names_shapes_and_dtypes_count(tmp_path: Path, other: dict[str, Tensor]) -> None:
    assert written(tmp_path / "x", {"w": torch.zeros(2, 3)}) != written(tmp_path / "y", other)


def test_format_is_frozen(tmp_path: Path) -> None:
    # A fingerprint is kept in every vector ever made: a change here makes all of them foreign to their bases.
    tensors = {"w": torch.arange(LARGE, dtype=torch.float32), "b": torch.ones(3, dtype=torch.bfloat16)}
    assert written(tmp_path / "x", tensors) == "34920ccecb837ff6e6bb181e6a044183dabb54a6da39c2c705e5e973b8e4b87b"
