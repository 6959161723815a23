"""Writing safetensors tensor by tensor: what safetensors itself would read back, in bytes that depend on the tensors alone."""

import json
from pathlib import Path

import torch
from safetensors import safe_open

from dem_hub.checkpoints.reader import Checkpoint
from dem_hub.checkpoints.writer import TensorWriter, write_file
from tests.support.tiny_models import load_tensors

TENSORS = {
    "b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "a": torch.arange(8, dtype=torch.bfloat16).reshape(2, 4).T,  # not contiguous
    "scalar": torch.tensor(2.5, dtype=torch.float16),
    "empty": torch.zeros(0, 3),
    "flags": torch.tensor([True, False, True]),
}


def test_safetensors_reads_it(tmp_path: Path) -> None:
    write_file(tmp_path / "x.safetensors", TENSORS)
    found = load_tensors(tmp_path)
    assert set(found) == set(TENSORS)
    assert all(
        torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in TENSORS.items()
    )
    with safe_open(tmp_path / "x.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_bytes_do_not_depend_on_order(tmp_path: Path) -> None:
    write_file(tmp_path / "x", TENSORS)
    write_file(tmp_path / "y", dict(reversed(TENSORS.items())))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()


def test_data_is_aligned(tmp_path: Path) -> None:
    write_file(tmp_path / "x", {"name" + "e" * length: torch.zeros(1) for length in range(9)})
    assert int.from_bytes((tmp_path / "x").read_bytes()[:8], "little") % 8 == 0


def test_shards_past_the_limit(tmp_path: Path) -> None:
    writer = TensorWriter(tmp_path, "model", 40)
    for name in sorted(TENSORS):
        writer.write(name, TENSORS[name])
    files = [path.name for path in writer.close()]
    assert files == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    index = json.loads((tmp_path / files[-1]).read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in TENSORS.values())
    assert set(index["weight_map"]) == set(TENSORS)
    checkpoint = Checkpoint(tmp_path)
    assert all(torch.equal(checkpoint.read(name), tensor) for name, tensor in TENSORS.items())
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_a_tensor_in_blocks(tmp_path: Path) -> None:
    writer = TensorWriter(tmp_path)
    writer.write_blocks("rows", "F32", (3, 2), iter((torch.zeros(1, 2), torch.ones(2, 2))))
    writer.close()
    assert torch.equal(load_tensors(tmp_path)["rows"], torch.tensor([[0.0, 0], [1, 1], [1, 1]]))


def test_nothing_to_write(tmp_path: Path) -> None:
    assert TensorWriter(tmp_path).close() == []
    assert list(tmp_path.iterdir()) == []
