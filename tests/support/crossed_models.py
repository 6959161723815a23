"""Two tiny fine-tunes that each harm the other's distribution: no weighted sum of them is as good as RegMean.

Each has learnt to count in its own half of the vocabulary, and to count wrongly in the other half. So a coefficient
brings both. The layers read other directions on each half, and by these RegMean tells the two apart.
"""

from pathlib import Path

import torch

from tests.support.counting_models import LENGTH, Counters, teach
from tests.support.tiny_models import VOCABULARY, build, save_tokenizer

HALVES = {"first": 0, "second": VOCABULARY // 2}
RIGHT = 1
WRONG = 7


def half_counting(low: int, step: int, rows: int, seed: int) -> list[list[int]]:
    """Return rows of token ids that go up by `step` in the half of the vocabulary that begins at `low`."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(VOCABULARY // 2, (rows, 1), generator=generator)
    return (low + (starts + step * torch.arange(LENGTH)) % (VOCABULARY // 2)).tolist()


def make_crossed(root: Path, family: str = "llama-untied") -> Counters:
    """Train the models, in seconds on one thread. Only linear layers learn."""
    from dem_hub import DistributionVector

    torch.set_num_threads(1)
    model = build(family)
    kinds = [half_counting(low, step, 64, 5) for low in HALVES.values() for step in (RIGHT, WRONG)]
    teach(model, [row for rows in zip(*kinds, strict=True) for row in rows], 20, 5e-3)
    model.save_pretrained(root / "base")
    save_tokenizer(root / "base")
    vectors = {}
    for (name, own), other in zip(HALVES.items(), reversed(HALVES.values()), strict=True):
        finetuned = type(model).from_pretrained(root / "base")
        for key, parameter in finetuned.named_parameters():
            parameter.requires_grad_("embed" not in key and "norm" not in key)
        right = half_counting(own, RIGHT, 256, 1)
        wrong = half_counting(other, WRONG, 256, 1)
        teach(finetuned, [row for rows in zip(right, wrong, strict=True) for row in rows], 24, 2e-3)
        finetuned.save_pretrained(root / f"full-{name}")
        vectors[name] = str(root / name)
        DistributionVector.extract(
            root / "base", root / f"full-{name}", codec="dense", dtype="float32"
        ).save_pretrained(root / name)
    data = {name: half_counting(low, RIGHT, 24, 2) for name, low in HALVES.items()}
    test = {name: half_counting(low, RIGHT, 64, 3) for name, low in HALVES.items()}
    return Counters(root / "base", vectors, data, test)
