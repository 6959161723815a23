"""The products of LoRAs on convolutions and experts, in full and in slices."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from dem_hub.checkpoints.lazy import InMemory
from dem_hub.vectors.lora.products import ConvolutionProduct, ExpertsProduct

GENERATOR = torch.Generator().manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=GENERATOR)


@pytest.mark.parametrize("kernel", [(5,), (3, 2), (1, 1), (2, 3, 2)], ids=str)
def test_a_convolution(kernel: tuple[int, ...]) -> None:
    """Both convolutions one after the other are one with the weight that is found."""
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[len(kernel)]
    a, b = random(4, 3, *kernel).double(), random(6, 4, *[1] * len(kernel)).double()
    product = ConvolutionProduct(InMemory(b), InMemory(a))
    images = random(2, 3, *[7] * len(kernel)).double()
    torch.testing.assert_close(convolve(images, product[...]), convolve(convolve(images, a), b))
    assert product.get_shape() == [6, 3, *kernel]
    torch.testing.assert_close(product[1:3, 1:], product[...][1:3, 1:])
    assert product[2:2].shape == (0, 3, *kernel)


@pytest.mark.parametrize("is_swapped", [False, True])
def test_experts(is_swapped: bool) -> None:
    """The reference is the formula of PEFT's `ParamWrapper.get_delta_weight`."""
    experts, rank, rows, columns = 3, 2, 5, 7
    outputs, inputs = (columns, rows) if is_swapped else (rows, columns)
    a, b = random(experts * rank, inputs), random(outputs, rank * experts)
    product = ExpertsProduct(InMemory(b), InMemory(a), experts, is_swapped)
    formula = "o r e, e r i -> e i o" if is_swapped else "o r e, e r i -> e o i"
    expected = torch.einsum(
        formula, b.double().reshape(outputs, rank, experts), a.double().reshape(experts, rank, inputs)
    )
    torch.testing.assert_close(product[...], expected)
    assert product.get_shape() == [experts, rows, columns]
    torch.testing.assert_close(product[1:3, 2:4, :5], expected[1:3, 2:4, :5])
    assert product[1:1, 2:4].shape == (0, 2, columns)
