"""The fingerprint does not depend on shards; it changes with a sampled byte, a row, a name, a dtype or a shape."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from torch import Tensor

import dem_hub.checkpoints.fingerprint
import dem_hub.hub.remembered
from dem_hub.checkpoints.fingerprint import (
    PIECE_BYTES,
    SAMPLE_BYTES,
    SAMPLES,
    agree,
    block_step,
    fingerprint,
    places_digest,
    saw_all_bytes,
    tensor_digests,
    without_bytes,
)
from dem_hub.checkpoints.reader import Checkpoint, TensorInfo
from dem_hub.checkpoints.writer import write_file
from dem_hub.errors import CheckpointError
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
    places = "34920ccecb837ff6e6bb181e6a044183dabb54a6da39c2c705e5e973b8e4b87b"
    blocks = "1b45927764d02a28ab1b2e41fe55aa61a3b6c1d66fd8f1f490eb8f31168e7371"
    assert written(tmp_path / "x", tensors) == f"{blocks}-{places}"


DTYPES = (torch.bfloat16, torch.float32, torch.int8, torch.float64)
# Rows of less than a piece, of no whole number of pieces, of one and of several blocks.
COLUMNS = (1, 3, 11, 64, 513, 2048, 5000)


def hashed_by_hand(tensor: Tensor, dtype: str, places: str, step: int) -> str:
    """The digest of the blocks, byte by byte as docs/formats.md has it."""
    data = tensor.view(torch.uint8).numpy().tobytes()
    pieces = [data[start : start + 8] for start in range(0, len(data) - 7, step)] if step > 8 else [data]
    text = f"{dtype} {list(tensor.shape)} {places}".encode()
    return hashlib.sha256(text + b"".join(pieces)).hexdigest()[:16]


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_each_row_has_a_whole_piece(tmp_path: Path, columns: int, dtype: torch.dtype) -> None:
    tensor = torch.randint(-100, 100, (2, 5, columns)).to(dtype)
    write_file(tmp_path / "x", {"w": tensor})
    checkpoint = Checkpoint(tmp_path / "x")
    info = checkpoint["w"]
    step = block_step(info)
    row_bytes = columns * dtype.itemsize
    assert step == 8 or step <= min(4072, row_bytes - 8)
    assert step % 8 == 0
    if step > PIECE_BYTES:
        starts = range(0, info.nbytes - 7, step)
        for row in range(10):
            assert any(row * row_bytes <= start <= (row + 1) * row_bytes - 8 for start in starts)
    blocks, places = tensor_digests(checkpoint)["w"].split("-")
    assert blocks == hashed_by_hand(tensor, info.dtype, places, step)


def change_row(values: Tensor, row: int) -> None:
    values[row] += 1


def change_neighbours(values: Tensor, row: int) -> None:
    values[row : row + 2] = -values[row : row + 2]


def swap_rows(values: Tensor, row: int) -> None:
    values[[row, row + 1]] = values[[row + 1, row]]


def change_column(values: Tensor, column: int) -> None:
    values[:, column] += 1


@pytest.mark.parametrize("change", [change_row, change_neighbours, swap_rows, change_column])
@pytest.mark.parametrize("columns", [576, 1000, 2304, 4096])
def test_no_row_and_no_column_can_change_unseen(
    tmp_path: Path, change: Callable[[Tensor, int], None], columns: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randn(1200, columns, generator=generator).bfloat16()
    before = written(tmp_path / "x", {"w": tensor})
    for place in (0, 1, 17, 333, 574):
        changed = tensor.clone()
        change(changed, place)
        after = written(tmp_path / "x", {"w": changed})
        assert not agree(before, after), place


@pytest.mark.parametrize("row_bytes", [16, 48, 1024, 1152, 4072, 4080, 4608, 8192, 9216, 28672, 32768, 56320])
def test_pieces_walk_through_all_columns(row_bytes: int) -> None:
    info = TensorInfo("U8", (510, row_bytes), Path("none"), 0, 510 * row_bytes)
    step = block_step(info)
    starts = {start % row_bytes for start in range(0, info.nbytes - PIECE_BYTES + 1, step)}
    assert {start // 8 for start in starts} == set(range(row_bytes // 8))


def test_all_that_the_places_leave_out(tmp_path: Path) -> None:
    """Two bases that differ everywhere but in 64 places of 64 bytes: the first version took one for the other."""
    values = torch.randn(512, 512).bfloat16()
    changed = values.clone()
    data = changed.view(torch.uint8).view(-1)
    kept = torch.zeros(len(data), dtype=torch.bool)
    for place in range(SAMPLES):
        start = (len(data) - SAMPLE_BYTES) * place // (SAMPLES - 1)
        kept[start : start + SAMPLE_BYTES] = True
    data[~kept] ^= 1
    before = written(tmp_path / "x", {"w": values})
    after = written(tmp_path / "y", {"w": changed})
    assert before.split("-")[1] == after.split("-")[1]
    assert not agree(before, after)


def test_a_hash_of_all_bytes_sees_a_single_one(tmp_path: Path) -> None:
    data = torch.zeros(100_000, dtype=torch.uint8)
    for element in (0, 9, 4071, 99_999):
        changed = data.clone()
        changed[element] = 1
        write_file(tmp_path / "x", {"w": data})
        write_file(tmp_path / "y", {"w": changed})
        before, after = (fingerprint(tensor_digests(Checkpoint(tmp_path / name), full=True)) for name in "xy")
        assert not agree(before, after)
        assert saw_all_bytes(before) and not saw_all_bytes(without_bytes(before) or "")
        assert agree(before, without_bytes(before))


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a", "a", True),
        ("b-a", "a", True),
        ("c-b-a", "b-a", True),
        ("b-a", "b", False),
        ("b-a", "c-a", False),
        ("b-a", "", False),
        (None, None, True),
        ("a", None, False),
    ],
)
def test_parts_that_both_have_are_compared(one: str | None, other: str | None, expected: bool) -> None:
    assert agree(one, other) is agree(other, one) is expected


def test_the_beginning_of_a_fingerprint_tells_two_bases_apart(tmp_path: Path) -> None:
    """Messages show the first digits. The byte that changes here is in a place, and in no piece of a block."""
    data = torch.zeros(100_000, dtype=torch.uint8)
    before = written(tmp_path / "x", {"w": data})
    data[20] = 1
    assert written(tmp_path / "x", {"w": data})[:16] != before[:16]


def test_a_file_that_has_become_shorter(tmp_path: Path) -> None:
    write_file(tmp_path / "x", {"w": torch.zeros(LARGE), "v": torch.zeros(LARGE)})
    checkpoint = Checkpoint(tmp_path / "x")
    os.truncate(tmp_path / "x", LARGE)
    with pytest.raises(CheckpointError, match="has become shorter while it was read"):
        tensor_digests(checkpoint)


@pytest.fixture
def shards(llama: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of three files, each of which is remembered."""
    monkeypatch.setattr(dem_hub.hub.remembered, "_LARGE", 0)
    folder = reshard(llama.base, tmp_path / "model", 3)
    for file in folder.glob("*.safetensors"):
        os.utime(file, (0, 0))
    return folder


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files of the tensors that are digested, one entry for each tensor."""
    found: list[str] = []

    def spy(info: TensorInfo, stream: Any) -> str:
        found.append(info.file.name)
        return places_digest(info, stream)

    monkeypatch.setattr(dem_hub.checkpoints.fingerprint, "places_digest", spy)
    return found


def test_a_second_look_reads_nothing(shards: Path, digested: list[str]) -> None:
    first = tensor_digests(Checkpoint(shards))
    assert len(digested) == len(first)
    assert tensor_digests(Checkpoint(shards)) == first
    assert len(digested) == len(first)


def test_the_file_that_changed_is_read_again(shards: Path, digested: list[str]) -> None:
    before = tensor_digests(Checkpoint(shards))
    digested.clear()
    file = sorted(shards.glob("*.safetensors"))[1]
    name, info = next((name, info) for name, info in Checkpoint(shards).items() if info.file == file)
    with file.open("r+b") as stream:
        stream.seek(info.start)
        stream.write(b"other")
    os.utime(file, (0, 0))
    after = tensor_digests(Checkpoint(shards))
    assert set(digested) == {file.name}
    assert {key for key in after if after[key] != before[key]} == {name}


def test_all_bytes_are_read_each_time(shards: Path, digested: list[str]) -> None:
    quick = tensor_digests(Checkpoint(shards))
    for number in (2, 3):
        full = tensor_digests(Checkpoint(shards), full=True)
        assert len(digested) == number * len(full)
    assert all(agree(full[name], quick[name]) for name in quick)
    assert tensor_digests(Checkpoint(shards)) == quick


@pytest.mark.parametrize("damaged", [1, {}, {"other": "0"}])
def test_digests_that_were_damaged_are_worked_out(
    shards: Path, digested: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damaged: Any
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HOME", str(tmp_path))
    expected = tensor_digests(Checkpoint(shards))
    for memory in tmp_path.glob("dem_hub/hashes/*"):
        memory.write_text(json.dumps(json.loads(memory.read_text()) | {"hash": damaged}))
    assert tensor_digests(Checkpoint(shards)) == expected
    assert len(digested) == 2 * len(expected)


def test_tensors_without_bytes(tmp_path: Path) -> None:
    write_file(tmp_path / "x", {"empty": torch.zeros(0, 4), "point": torch.tensor(3.0)})
    assert set(tensor_digests(Checkpoint(tmp_path / "x"), full=True)) == {"empty", "point"}
