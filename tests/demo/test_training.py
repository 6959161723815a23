"""The demo's fine-tunes: real runs of the Trainer on a tiny model, and what they leave behind."""

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from dem_hub import DistributionVector
from dem_hub.demo.training import BLOCK_SIZE, SEPARATOR, pack, train, train_lora
from tests.support.tiny_models import Models, Zoo, load_tensors

TEXTS = [" ".join(f"w{(start + step) % 60}" for step in range(50)) for start in range(40)]


@pytest.fixture
def base(zoo: Zoo) -> Models:
    return zoo.models("llama-tied", "bfloat16")


def test_full_fine_tune(base: Models, tmp_path: Path) -> None:
    folder = train(base.base, TEXTS, tmp_path / "full", steps=3, learning_rate=1e-3)
    trained, before = load_tensors(folder), load_tensors(base.base)
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}, (
        "saved in bf16, half of a short run would be lost"
    )
    assert all((trained[name] != before[name]).any() for name in before)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == AutoTokenizer.from_pretrained(base.base).get_vocab()
    assert {path.name for path in folder.iterdir()}.isdisjoint(
        {"optimizer.pt", "training_args.bin", "trainer_state.json"}
    )
    assert DistributionVector.extract(base.base, folder).config is not None


def test_lora(base: Models, tmp_path: Path) -> None:
    folder = train_lora(base.base, TEXTS, tmp_path / "lora", steps=3)
    assert DistributionVector.from_pretrained(folder).base.repo_id == str(base.base)
    assert any(name.endswith("lora_B.weight") and bool(tensor.any()) for name, tensor in load_tensors(folder).items())


def test_the_same_seed_trains_the_same(base: Models, tmp_path: Path) -> None:
    runs = [
        load_tensors(train(base.base, TEXTS, tmp_path / name, steps=2, seed=seed))
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert any(not torch.equal(runs[0][name], runs[2][name]) for name in runs[0])


def test_a_finished_run_is_reused(base: Models, tmp_path: Path) -> None:
    assert train(base.base, TEXTS, tmp_path, steps=3) == tmp_path
    assert not list(tmp_path.iterdir())


def test_packing(base: Models) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base.base)
    ids = [row for block in pack(tokenizer, TEXTS) for row in block["input_ids"].tolist()]
    stream = [token for text in TEXTS for token in [*tokenizer(text)["input_ids"], SEPARATOR]]
    assert ids == stream[: len(ids)]
    assert 0 <= len(stream) - len(ids) < BLOCK_SIZE
    with pytest.raises(ValueError, match="less than the 128 of one sequence"):
        pack(tokenizer, ["w1 w2"])
