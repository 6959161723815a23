"""Vectors that bring new tokens."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dem_hub import DEMModel, DistributionVector
from dem_hub.errors import CoefficientError
from tests.models.helpers import same_tensors, state_of
from tests.support.tiny_models import Zoo, edit_json, reshard


def grow(zoo: Zoo, folder: Path, family: str) -> str:
    """A vector whose fine-tune has five more tokens."""
    models = zoo.models(family)

    def more(tensors: dict[str, Tensor]) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            if name in tensors:
                tensors[name] = torch.cat([tensors[name], torch.full((5, 32), 0.5, dtype=tensors[name].dtype)])

    edit_json(reshard(models.full, folder / "finetuned", change=more) / "config.json", vocab_size=69)
    DistributionVector.extract(models.base, folder / "finetuned", codec="dense").save_pretrained(folder / "grown")
    return str(folder / "grown")


@pytest.mark.parametrize("family", ["llama-tied", "llama-untied"])
def test_grown_vocabulary(zoo: Zoo, tmp_path: Path, family: str) -> None:
    vector = grow(zoo, tmp_path, family)
    model = DEMModel.from_pretrained(zoo.models(family).base, vectors={vector: 0.25})
    assert model.config.vocab_size == 69 == model.get_output_embeddings().weight.shape[0]
    assert bool((model.get_input_embeddings().weight[64:] == 0.5).all())
    assert model(torch.tensor([[68, 3]])).logits.shape == (1, 2, 69)
    model.dem.set_coefficients({vector: 0.5})
    before = state_of(model)
    with pytest.raises(CoefficientError, match=r"from \[69, 32\] to \[64, 32\].*Load the model anew"):
        model.dem.set_coefficients({vector: 0.0})
    assert same_tensors(state_of(model), before)
