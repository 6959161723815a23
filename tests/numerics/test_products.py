"""A product in float32 is within its bound, and is only used where it has one."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dem_hub.numerics import products
from dem_hub.numerics.noise import Noise
from dem_hub.numerics.products import Product, multiplies_in_float32
from dem_hub.numerics.rounding import round_into
from dem_hub.numerics.slices import full_index


def random_product(rows: int, rank: int, columns: int, scale: float = 1.0) -> Product:
    generator = torch.Generator().manual_seed(rank)
    left = torch.randn(rows, rank, generator=generator)
    return Product.of(left, scale * torch.randn(rank, columns, generator=generator, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 70), st.floats(-30, 15))
def test_each_number_is_within_its_bound(rows: int, rank: int, columns: int, exponent: float) -> None:
    product = random_product(rows, rank, columns, 2.0**exponent)
    exact = product.left.double() @ product.right.values
    assert product.is_bounded
    for block in product.blocks():
        bounds = block.row_norms[:, None] * block.column_errors
        assert bool(((block.values.double() - exact[block.rows]).abs() <= bounds).all())


def test_blocks_are_all_rows_once(monkeypatch: pytest.MonkeyPatch) -> None:
    product = random_product(50, 3, 20)
    whole = next(product.blocks()).values.clone()
    monkeypatch.setattr(products, "_BLOCK", 20 * 7)
    parts = [(block.rows, block.values.clone()) for block in product.blocks()]
    assert torch.cat([torch.arange(50)[rows] for rows, _ in parts]).tolist() == list(range(50))
    assert len(parts) == 8
    torch.testing.assert_close(torch.cat([values for _, values in parts]), whole)


def test_some_rows_are_the_product_of_these() -> None:
    product = random_product(50, 3, 20)
    (block,) = product.rows(slice(10, 13)).blocks()
    torch.testing.assert_close(block.values.double(), product.left[10:13].double() @ product.right.values)


def allow_for_all(precision: str) -> None:
    torch.backends.fp32_precision = precision  # type: ignore[attr-defined]


def allow_for_products(precision: str) -> None:
    torch.backends.mkldnn.matmul.fp32_precision = precision  # type: ignore[attr-defined]


@pytest.fixture
def fewer_bits(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[None]:
    if isinstance(request.param, str):
        monkeypatch.setenv(request.param, "BF16")
        yield
        return
    allow, given, back = request.param
    allow(given)
    yield
    allow(back)


WAYS = {
    "an environment variable": "ONEDNN_DEFAULT_FPMATH_MODE",
    "its older name": "DNNL_DEFAULT_FPMATH_MODE",
    "products": (allow_for_products, "bf16", "none"),
    "all": (allow_for_all, "bf16", "none"),
    "the older name": (torch.set_float32_matmul_precision, "medium", "highest"),
}


@pytest.mark.parametrize("fewer_bits", WAYS.values(), ids=WAYS, indirect=True)
def test_where_a_program_allows_fewer_bits_the_result_is_the_same(fewer_bits: None) -> None:
    """A processor may then multiply in bfloat16."""
    assert not multiplies_in_float32()
    product = random_product(64, 48, 256, 1e-3)
    assert not product.is_bounded
    base = torch.randn(64, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    noise = Noise.of(0, "weight", full_index(base.shape), tuple(base.shape), base.device)
    found, expected = torch.empty_like(base), torch.empty_like(base)
    assert round_into(found, base, product, noise)
    assert round_into(expected, product.added_to(base.double()), None, noise)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2.0**21])
def test_there_is_no_bound_beyond_the_range(side: str, value: float) -> None:
    factors = {"left": torch.ones(4, 3), "right": torch.ones(3, 5)}
    factors[side][1, 2] = value
    assert not Product.of(**factors).is_bounded
