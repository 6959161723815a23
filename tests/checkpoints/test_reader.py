"""Reading safetensors: headers, slices, shards, and what is refused."""

import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.errors import CheckpointError, ConfigError, NotFoundError
from dem_hub.hub.hashes import digest, verify_files
from dem_hub.numerics.norms import is_finite
from dem_hub.numerics.slices import full_index
from tests.support.tiny_models import Models, load_tensors, reshard

TENSORS = {
    "matrix": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "cube": torch.arange(24, dtype=torch.bfloat16).reshape(2, 3, 4),
    "line": torch.arange(5, dtype=torch.float16),
    "point": torch.tensor(3, dtype=torch.int64),
    "empty": torch.zeros(0, 4),
    "flags": torch.tensor([True, False]),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("name", TENSORS)
def test_reads_what_safetensors_wrote(folder: Path, name: str) -> None:
    checkpoint = Checkpoint(folder)
    info, expected = checkpoint[name], TENSORS[name]
    assert (info.torch_dtype, info.shape, info.nbytes) == (expected.dtype, tuple(expected.shape), expected.nbytes)
    assert torch.equal(checkpoint.read(name), expected)
    assert torch.equal(checkpoint.read(name, full_index(info.shape)), expected)


def test_byte_range_is_that_of_the_file(folder: Path) -> None:
    info = Checkpoint(folder)["matrix"]
    data = info.file.read_bytes()[info.start : info.stop]
    assert torch.equal(torch.frombuffer(bytearray(data), dtype=torch.float32).reshape(3, 4), TENSORS["matrix"])


def test_reads_a_slice(folder: Path) -> None:
    assert torch.equal(
        Checkpoint(folder).read("cube", (slice(1, 2), slice(0, 3), slice(1, 3))), TENSORS["cube"][1:2, :, 1:3]
    )


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_sharding_makes_no_difference(llama: Models, tmp_path: Path, shards: int) -> None:
    checkpoint = Checkpoint(reshard(llama.base, tmp_path / "copy", shards))
    expected = load_tensors(llama.base)
    assert set(checkpoint) == set(expected)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["deepcopy", "pickle"]
)
def test_copies_open_their_own_files(folder: Path, duplicate: object) -> None:
    checkpoint = Checkpoint(folder)
    checkpoint.read("line")
    assert torch.equal(duplicate(checkpoint).read("line"), TENSORS["line"])  # type: ignore[operator]


def test_only_safetensors_file_of_any_name(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.safetensors")
    assert set(Checkpoint(tmp_path)) == set(TENSORS) == set(Checkpoint(tmp_path / "weights.safetensors"))


def test_single_file_wins_over_an_index_as_in_transformers(llama: Models, tmp_path: Path) -> None:
    target = reshard(llama.base, tmp_path / "copy", 3)
    save_file({"other": torch.ones(2)}, target / "model.safetensors")
    assert set(Checkpoint(target)) == {"other"}


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="has no model.safetensors") as caught:
        Checkpoint(tmp_path)
    assert caught.type is NotFoundError
    with pytest.raises(NotFoundError, match="is not a file or folder") as caught:
        Checkpoint(tmp_path / "absent")
    assert caught.type is NotFoundError


@pytest.mark.parametrize("content", ["[]", "{}", '{"weight_map": []}', "not json"])
def test_broken_index(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not an index of safetensors files"):
        Checkpoint(tmp_path)


def test_index_lists_every_missing_file(llama: Models, tmp_path: Path) -> None:
    target = reshard(llama.base, tmp_path / "copy", 3)
    lost = sorted(target.glob("*.safetensors"))[1:]
    for file in lost:
        file.unlink()
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(target)
    assert all(file.name in str(caught.value) for file in lost)


def test_index_names_a_tensor_that_its_file_lacks(llama: Models, tmp_path: Path) -> None:
    target = reshard(llama.base, tmp_path / "copy", 2)
    index = target / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["model.lost.weight"] = "model-00001-of-00002.safetensors"
    index.write_text(json.dumps(data))
    with pytest.raises(CheckpointError, match=r"(?s)'model.lost.weight'.*again"):
        Checkpoint(target)


def test_unknown_dtypes_are_all_listed(tmp_path: Path) -> None:
    save_file(
        {"a": torch.zeros(2, dtype=torch.complex64), "b": torch.zeros(2, dtype=torch.complex64)},
        tmp_path / "model.safetensors",
    )
    with pytest.raises(CheckpointError, match=r"(?s)'a' has dtype C64.*'b' has dtype C64.*Known: F64"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("tensor", "finite"),
    [
        (torch.ones(3), True),
        (torch.tensor([1, torch.nan]), False),
        (torch.tensor([[1, -torch.inf]], dtype=torch.bfloat16), False),
        (torch.tensor([7]), True),
        (torch.zeros(0), True),
    ],
    ids=["ones", "nan", "inf", "integers", "empty"],
)
def test_is_finite(tensor: Tensor, finite: bool) -> None:
    assert is_finite(tensor) is finite


def test_verify_files_lists_every_fault(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    verify_files(tmp_path, {"a": digest(tmp_path / "a")})
    with pytest.raises(
        CheckpointError,
        match=r"(?s)'b' has sha256 3e23e8160039594a, recorded is 0000000000000000.*'c' is missing",
    ):
        verify_files(tmp_path, {"a": digest(tmp_path / "a"), "b": "0" * 64, "c": "1" * 64})
    with pytest.raises(ConfigError, match=r"'\.\./x'"):
        verify_files(tmp_path, {"../x": "0" * 64})


def test_gguf_is_named(tmp_path: Path) -> None:
    (tmp_path / "model-Q4_K_M.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        CheckpointError, match=r"only GGUF weights \(model-Q4_K_M.gguf\).*gguf_file='model-Q4_K_M.gguf'"
    ):
        Checkpoint(tmp_path)
