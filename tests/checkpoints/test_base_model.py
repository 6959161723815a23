"""The base and its fingerprint: what the first version recorded is compared by what it saw, and no more is promised."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dem_hub import DistributionVector, VectorSource, VectorStore
from dem_hub.checkpoints.base_model import Base
from dem_hub.checkpoints.fingerprint import saw_all_bytes
from dem_hub.checkpoints.writer import write_file
from dem_hub.errors import BaseMismatchError
from dem_hub.hub.download import Resolved
from dem_hub.hub.remembered import hashing_again
from dem_hub.merging.opening import open_base_and_vectors, open_recipe
from tests.support.tiny_models import load_tensors

# Written by the first version, whose fingerprints saw 64 places of a tensor. The paths in it are gone.
VERSION_1 = Path(__file__).parents[1] / "support" / "version_1"
CPU = torch.device("cpu")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(VERSION_1, tmp_path / "old"))


def merged(base: Path, vector: Path, **options: bool) -> torch.Tensor:
    opened = open_base_and_vectors(VectorSource(str(base)), {VectorSource(str(vector)): 1.0}, **options)
    merge = opened.merge(opened.recipe, allow_base_mismatch=not options.get("check_base", True))
    return merge.tensor("matrix", (slice(0, 40), slice(0, 64)), CPU, torch.bfloat16)


def change(base: Path, place: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change a part of the base's matrix."""
    tensors = {name: tensor.clone() for name, tensor in load_tensors(base).items()}
    place(tensors["matrix"]).neg_()
    write_file(base / "model.safetensors", tensors)


def seen(matrix: torch.Tensor) -> torch.Tensor:
    return matrix[:1]


def unseen(matrix: torch.Tensor) -> torch.Tensor:
    """An element of the matrix of 5,120 bytes that lies between two places of 64 bytes, and in a piece of a block."""
    return matrix.view(-1)[480:481]


def test_old_vectors_merge(old: Path) -> None:
    expected = load_tensors(old / "finetuned")["matrix"]
    assert torch.equal(merged(old / "base", old / "vectors" / "exact"), expected)
    torch.testing.assert_close(merged(old / "base", old / "vectors" / "int8"), expected, atol=0.05, rtol=0.01)


def test_old_recipes_open(old: Path) -> None:
    assert len(open_recipe(VectorSource(str(old / "recipe"))).vectors) == 2
    change(old / "base", seen)
    with pytest.raises(BaseMismatchError, match=r"The recipe's base is .* \(fingerprint [0-9a-f]{16}\)"):
        open_recipe(VectorSource(str(old / "recipe")))


def test_old_vectors_are_refused_on_another_base(old: Path) -> None:
    change(old / "base", seen)
    for check_base, message in ((True, "The first tensor that differs is 'matrix'"), (False, "only steps from its")):
        with pytest.raises(BaseMismatchError, match=message):
            merged(old / "base", old / "vectors" / "exact", check_base=check_base)


def test_what_an_old_vector_did_not_see_a_new_one_does(old: Path) -> None:
    new = old / "new"
    DistributionVector.extract(old / "base", old / "finetuned", codec="exact").save_pretrained(new)
    change(old / "base", unseen)
    merged(old / "base", old / "vectors" / "exact")
    for check_base, message in ((True, "The first tensor that differs is 'matrix'"), (False, "only steps from its")):
        with pytest.raises(BaseMismatchError, match=message):
            merged(old / "base", new, check_base=check_base)


def test_stores_take_vectors_of_both_versions(old: Path) -> None:
    new = DistributionVector.extract(old / "base", old / "finetuned", codec="int8")
    store = VectorStore.from_pretrained(old / "store")
    store.add("second", new)
    store = VectorStore.create(old / "new-store", old / "base")
    store.add("first", DistributionVector.from_pretrained(old / "vectors" / "exact"))
    store.add("second", new)
    change(old / "base", seen)
    another = DistributionVector.extract(old / "base", old / "finetuned", codec="int8")
    for folder in ("store", "new-store"):
        with pytest.raises(BaseMismatchError, match="Make a store for its base"):
            VectorStore.from_pretrained(old / folder).add("third", another)


def test_all_bytes_are_compared_where_they_were_recorded(old: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors = {}
    for verify in ("quick", "full"):
        vector = DistributionVector.extract(old / "base", old / "finetuned", codec="int8", verify=verify)
        vector.save_pretrained(old / verify)
        vectors[verify] = vector
    fingerprints = {verify: vector.base.fingerprint or "" for verify, vector in vectors.items()}
    assert saw_all_bytes(fingerprints["full"]) and not saw_all_bytes(fingerprints["quick"])
    assert fingerprints["full"].endswith(fingerprints["quick"])

    change(old / "base", lambda matrix: matrix.view(-1)[32:33])  # in no place, and in no piece of a block
    for verify in ("quick", "full"):
        merged(old / "base", old / verify)
    assert not caplog.records
    with hashing_again("full"), caplog.at_level(logging.WARNING, "dem_hub"):
        merged(old / "base", old / "quick")
        assert "has no hash of all its bytes, so only a sample of" in caplog.text
        with pytest.raises(BaseMismatchError, match="The first tensor that differs is 'matrix'"):
            merged(old / "base", old / "full")


def test_a_base_decides_when_it_is_opened(old: Path) -> None:
    """The digests are worked out later, when the block that asked for all bytes may have ended."""
    with hashing_again("full"):
        base = Base(Resolved.local(old / "base"))
    assert saw_all_bytes(base.fingerprint)
