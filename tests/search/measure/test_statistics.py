"""Loss, gradient and Gauss-Newton curvature from logits, against autograd."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dem_hub.search.measure.statistics import SummedStatistics


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 3])
def test_sums_are_those_of_autograd(count: int) -> None:
    """The loss of logits that are linear in the coefficients has the Gauss-Newton matrix as its Hessian."""
    logits, moves = random(50, 11, seed=0).double(), random(count, 50, 11, seed=1).double()
    first = torch.zeros(50, dtype=torch.long)  # the first logit is that of the token that came

    def loss(point: Tensor) -> Tensor:
        return functional.cross_entropy(logits + torch.einsum("n,ntv->tv", point, moves), first)

    point = torch.zeros(count, dtype=torch.float64, requires_grad=True)
    sums = SummedStatistics.zeros(count)
    for part in (slice(0, 20), slice(20, 50)):
        sums.add(logits[part].float(), moves[:, part].float())
    found = sums.mean()
    assert found.loss == pytest.approx(float(loss(point).detach()), rel=1e-6)
    (gradient,) = torch.autograd.grad(loss(point), point)
    torch.testing.assert_close(found.gradient, gradient, rtol=1e-5, atol=1e-6)
    hessian = torch.autograd.functional.hessian(loss, torch.zeros(count, dtype=torch.float64))
    torch.testing.assert_close(found.curvature, hessian, rtol=1e-5, atol=1e-6)
