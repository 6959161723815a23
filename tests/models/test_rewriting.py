"""Weights that are written in place: by threads, and by passes that torch does not see."""

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch

from dem_hub import DEMModel
from dem_hub.numerics import passes
from tests.models.helpers import base_and_two_vectors, same_tensors, state_of
from tests.support.tiny_models import Zoo

FAMILY = "llama-untied"


@pytest.fixture(params=["compiled", "by torch"], autouse=True)
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Merge by compiled passes, and by operations of torch."""
    if request.param == "by torch":
        monkeypatch.setattr(passes, "BY_TORCH", 1 << 40)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_backward_pass_of_the_old_weights_is_an_error(zoo: Zoo, dtype: torch.dtype) -> None:
    """It would mix activations of one model with weights of another."""
    base, first, _ = base_and_two_vectors(zoo, FAMILY)
    model = DEMModel.from_pretrained(base, vectors={first: 0.9}, dtype=dtype)
    ids = torch.tensor([[5, 6, 7]])
    loss = model(input_ids=ids, labels=ids).loss
    model.dem.set_coefficients({first: 0.3})
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    model(input_ids=ids, labels=ids).loss.backward()


@pytest.mark.parametrize("loading", [torch.inference_mode, nullcontext])
@pytest.mark.parametrize("changing", [torch.inference_mode, nullcontext])
def test_inference_mode(
    zoo: Zoo, loading: type[AbstractContextManager[None]], changing: type[AbstractContextManager[None]]
) -> None:
    base, first, second = base_and_two_vectors(zoo, FAMILY)
    with loading():
        model = DEMModel.from_pretrained(base, vectors={first: 0.9, second: 0.0})
    coefficients = {first: 0.3, second: 0.6}
    with changing():
        model.dem.set_coefficients(coefficients)
    assert same_tensors(state_of(model), state_of(DEMModel.from_pretrained(base, vectors=coefficients)))


def test_a_parameter_that_is_not_contiguous(zoo: Zoo) -> None:
    base, first, _ = base_and_two_vectors(zoo, FAMILY)
    model = DEMModel.from_pretrained(base, vectors={first: 0.9})
    weight = model.lm_head.weight
    weight.data = weight.data.T.contiguous().T
    model.dem.set_coefficients({first: 0.3})
    assert not weight.is_contiguous()
    assert same_tensors(state_of(model), state_of(DEMModel.from_pretrained(base, vectors={first: 0.3})))


def test_tensors_that_have_become_one(zoo: Zoo) -> None:
    """The checkpoint has both ends of a tie, and different ones. Neither end is a mixture of both."""
    base, first, _ = base_and_two_vectors(zoo, FAMILY)
    model = DEMModel.from_pretrained(base, vectors={first: 0.9})
    model.lm_head.weight = model.model.embed_tokens.weight
    fresh = DEMModel.from_pretrained(base, vectors={first: 0.3})
    model.dem.set_coefficients({first: 0.3})
    last = [name for name in model.dem._places.direct if name in ("lm_head.weight", "model.embed_tokens.weight")][-1]
    assert torch.equal(model.lm_head.weight, fresh.get_parameter(last))
