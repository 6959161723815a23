"""Tensors that are computed when they are copied, against the same operations on the tensor itself."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dem_hub.numerics.slices import Index, full_index
from dem_hub.serving.deferred import DeferredTensor

VALUES = torch.arange(24.0).reshape(4, 6)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("operation", "read"),
    [
        (lambda tensor: tensor.narrow(0, 1, 2), 12),
        (lambda tensor: tensor.narrow(1, 3, 3).narrow(0, 0, 1), 3),
        (lambda tensor: tensor[1:3, -2:], 4),
        (lambda tensor: tensor[-1:].data.detach(), 6),
        (lambda tensor: tensor[2:1], 0),
        (lambda tensor: tensor, 24),
        # Computed first.
        (lambda tensor: tensor[::2], 24),
        (lambda tensor: tensor[1], 24),
        (lambda tensor: tensor.chunk(2, dim=1)[1], 24),
        (lambda tensor: tensor.narrow(0, 1, 2).t().contiguous(), 12),
        (lambda tensor: tensor.narrow(0, 1, 2).reshape(3, 4) + tensor[:1, :4], 16),
        (lambda tensor: torch.cat([tensor, tensor.narrow(0, 0, 2)]), 36),
        (lambda tensor: tensor[:1].to(torch.float16).view(2, 3), 6),
    ],
)
def test_no_more_is_computed_than_is_copied(operation: Callable[[Tensor], Tensor], read: int) -> None:
    computed = 0

    def compute(index: Index) -> Tensor:
        nonlocal computed
        computed += VALUES[index].numel()
        return VALUES[index]

    given = operation(DeferredTensor(compute, full_index((4, 6)), torch.float32, CPU))
    expected = operation(VALUES)
    assert (given.shape, given.dtype, given.device) == (expected.shape, expected.dtype, expected.device)
    parameter = torch.empty_like(expected)
    parameter.copy_(given)
    assert torch.equal(parameter, expected)
    assert computed == read
