"""DARE: the law of what stays, and that it is the same everywhere."""

from typing import Any

import pytest
import torch

from dem_hub import DistributionVector
from dem_hub.errors import ConfigError
from dem_hub.transformations import dare
from dem_hub.transformations.dare import drop
from tests.support.tiny_models import Zoo

FAMILY = "llama-untied"
KEY = "model.layers.0.mlp.up_proj.weight"


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_what_stays_is_scaled_and_as_many_as_asked_for(density: float) -> None:
    delta = torch.randn(300, 200, generator=torch.Generator().manual_seed(0))
    kept = drop(delta, density, 0, "a vector and a tensor")
    stays = kept != 0
    # Five standard deviations of a binomial share of 60,000 elements.
    assert abs(float(stays.float().mean()) - density) < 5 * (density * (1 - density) / 60_000) ** 0.5
    torch.testing.assert_close(kept[stays], delta[stays] / density, rtol=1e-4, atol=0)


def test_the_choice_is_independent_of_rows_and_columns() -> None:
    stays = (drop(torch.ones(400, 400), 0.5, 0, "x") != 0).double()
    # The number in each row and column has the standard deviation of a fair coin, 10.
    for dimension in (0, 1):
        assert float(stays.sum(dimension).std()) == pytest.approx(10, rel=0.15)


@pytest.mark.parametrize("shape", [(), (7,), (3, 5), (2, 3, 4)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    kept = drop(torch.ones(shape), 0.5, 0, "x")
    assert kept.shape == shape
    assert set(kept.flatten().tolist()) <= {0.0, 2.0}


def test_all_stays_at_a_density_of_one() -> None:
    delta = torch.randn(20, 20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(drop(delta, 1.0, 0, "x"), delta, rtol=0, atol=0)


def test_vectors_and_seeds_drop_different_elements() -> None:
    ones = torch.ones(50, 50)
    first = drop(ones, 0.5, 0, "a") != 0
    for other in (drop(ones, 0.5, 1, "a"), drop(ones, 0.5, 0, "b")):
        assert 0.4 < float((first == (other != 0)).float().mean()) < 0.6


def test_vectors_in_the_order_of_their_names_or_not(zoo: Zoo) -> None:
    base = zoo.models(FAMILY, "float32").base
    names = [str(zoo.vector(FAMILY, "float32")), str(zoo.adapter(FAMILY))]
    forth = dare(base, names, codec="dense")
    back = dare(base, names[::-1], codec="dense")
    for name in names:
        assert torch.equal(forth[name].decode(KEY, base), back[name].decode(KEY, base))


def test_a_vector_is_right_on_average(zoo: Zoo) -> None:
    base = zoo.models(FAMILY, "float32").base
    name = str(zoo.vector(FAMILY, "float32"))
    delta = DistributionVector.from_pretrained(name).decode(KEY, base)
    draws = [dare(base, [name], density=0.5, seed=seed, codec="dense")[name].decode(KEY, base) for seed in range(3)]
    mean = torch.stack(draws).mean(0)
    # The noise of one draw is as long as the delta.
    assert float((mean - delta).norm()) == pytest.approx(float(delta.norm()) / 3**0.5, rel=0.1)


@pytest.mark.parametrize("density", [0.0, 1.1])
def test_a_density_out_of_range_is_refused(zoo: Zoo, density: float) -> None:
    with pytest.raises(ConfigError, match="density"):
        dare(zoo.models(FAMILY, "float32").base, [str(zoo.vector(FAMILY, "float32"))], density=density)


@pytest.mark.parametrize("seed", [1 << 64, 1.5, "3"])
def test_a_seed_that_could_not_be_read_again_is_refused(seed: Any) -> None:
    with pytest.raises(ConfigError, match="seed is .*; it must be a whole number of at most 64 bits"):
        dare("org/base", ["me/maths"], seed=seed)
