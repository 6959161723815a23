"""Priors: their derivatives, and the product of two of them."""

import pytest
import torch
from torch import Tensor

from dem_hub.search.solve.prior import Prior


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


PRIORS = {
    "none": Prior(),
    "common": Prior(common_strength=2.0),
    "center": Prior(center=tensor(0.5, -1.0, 0.0), center_strengths=tensor(1.0, 0.0, 3.0)),
    "both": Prior(2.0, tensor(0.5, -1.0, 0.0), tensor(1.0, 0.0, 3.0)),
}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_derivatives_are_those_of_autograd(prior: Prior) -> None:
    def value(point: Tensor) -> Tensor:
        spread = prior.common_strength * ((point - point.mean()) ** 2).sum() / 2
        if prior.center is None or prior.center_strengths is None:
            return spread
        return spread + (prior.center_strengths * (point - prior.center) ** 2).sum() / 2

    point = tensor(0.3, 0.9, -0.2)
    found_value, gradient, curvature = prior(point)
    assert found_value == pytest.approx(float(value(point)))
    torch.testing.assert_close(gradient, torch.autograd.functional.jacobian(value, point))
    torch.testing.assert_close(curvature, torch.autograd.functional.hessian(value, point))


def test_a_product_is_the_sum_of_the_penalties_but_for_a_constant() -> None:
    first = Prior(1.0, tensor(0.5, -1.0), tensor(1.0, 3.0))
    second = Prior(0.0, tensor(1.0, 2.0), tensor(2.0, 0.5))
    product = first.combined_with(tensor(1.0, 2.0), tensor(2.0, 0.5))
    points = [tensor(0.0, 0.0), tensor(1.0, -0.5), tensor(0.2, 3.0)]
    constants = [first(point)[0] + second(point)[0] - product(point)[0] for point in points]
    assert constants == pytest.approx([constants[0]] * 3)


def test_no_strength_at_all_has_no_center() -> None:
    product = Prior(0.0, tensor(7.0), tensor(0.0)).combined_with(tensor(9.0), tensor(0.0))
    assert product(tensor(3.0))[0] == 0.0
