"""Models, recipes and comparisons that the tests of loading share."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dem_hub import DEMModel
from tests.support.tiny_models import Zoo


def state_of(model: Any) -> dict[str, Tensor]:
    """Return copies of a model's tensors."""
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_tensors(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    """Return whether two sets of tensors have the same names and the same values."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def base_and_two_vectors(zoo: Zoo, family: str, dtype: str = "bfloat16") -> tuple[Path, str, str]:
    """Return a base and the names of two vectors on it, one dense and one of low rank."""
    vectors = (str(zoo.vector(family, dtype, kind)) for kind in ("dense", "lowrank"))
    return zoo.models(family, dtype).base, *vectors  # type: ignore[return-value]


def save_recipe(zoo: Zoo, folder: Path, family: str = "llama-tied") -> Path:
    """Save a recipe over two vectors in a folder, and return the folder."""
    base, first, second = base_and_two_vectors(zoo, family)
    DEMModel.from_pretrained(base, vectors={first: 0.3, second: 0.6}).dem.save_pretrained(folder)
    return folder
