"""Tiny real fine-tunes for tests of the search: a Llama taught to count up, down, or by threes, and their vectors."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.support.tiny_models import VOCABULARY, build, save_tokenizer

STEPS = {"up": 1, "down": -1, "threes": 3}
LENGTH = 20


def counting(step: int, rows: int, seed: int) -> list[list[int]]:
    """Return rows of token ids that go up or down by `step`; every fifth one is wrong."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(VOCABULARY, (rows, 1), generator=generator)
    ids = (starts + step * torch.arange(LENGTH)) % VOCABULARY
    noise = torch.randint(VOCABULARY, ids.shape, generator=generator)
    return torch.where(torch.rand(ids.shape, generator=generator) < 0.2, noise, ids).tolist()


@dataclass(frozen=True)
class Counters:
    """The base, a vector for each way to count, validation rows by distribution, and test rows."""

    base: Path
    vectors: dict[str, str]
    data: dict[str, list[list[int]]]
    test: dict[str, list[list[int]]]


def teach(model: Any, rows: list[list[int]], steps: int, learning_rate: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    for number in range(steps):
        start = 16 * number % len(rows)
        batch = torch.tensor(rows[start : start + 16])
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def make_counters(root: Path, steps: int = 24, learning_rate: float = 1e-3) -> Counters:
    """Train the models, in a few seconds on one thread. The shorter the training, the better their effects add up."""
    from dem_hub import DistributionVector

    torch.set_num_threads(1)
    model = build("llama-tied")
    mixed = [row for rows in zip(*(counting(step, 64, 5) for step in STEPS.values()), strict=True) for row in rows]
    teach(model, mixed, 20, 5e-3)
    model.save_pretrained(root / "base")
    save_tokenizer(root / "base")
    vectors = {}
    for name, step in STEPS.items():
        finetuned = type(model).from_pretrained(root / "base")
        teach(finetuned, counting(step, 256, 1), steps, learning_rate)
        finetuned.save_pretrained(root / f"full-{name}")
        vectors[name] = str(root / name)
        DistributionVector.extract(
            root / "base", root / f"full-{name}", codec="dense", dtype="float32"
        ).save_pretrained(root / name)
    data = {name: counting(step, 24, 2) for name, step in STEPS.items()}
    test = {name: counting(step, 64, 3) for name, step in STEPS.items()}
    return Counters(root / "base", vectors, data, test)
