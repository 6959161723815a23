"""What the tests of pushed vectors and models share: saving, running the code of a card, and comparing two models."""

import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard

from dem_hub import DistributionVector


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_parameters())


def assert_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    ours, theirs = weights(first), weights(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def saved(vector: DistributionVector, folder: Path) -> str:
    vector.save_pretrained(folder / "saved")
    return str(folder / "saved")


def run_code(card: ModelCard) -> dict[str, Any]:
    """The card's example works as it stands. Returned is what it defines."""
    blocks = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    assert len(blocks) == 1
    names: dict[str, Any] = {}
    exec(compile(blocks[0], "README.md", "exec"), names)
    return names
