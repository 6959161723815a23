"""A product of two factors in float32, a few rows at a time, with a bound on the error of each of its numbers.

A merge on the CPU adds such products to a base. In float64 they take several times as long. In float32, the bound says
which few sums have to be computed again in float64, so that all are rounded as those would be.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
from torch import Tensor

from dem_hub.numerics.buffers import Buffer, scratch

# The largest relative error of one operation in float32.
_UNIT = 2.0**-24

# Products that are summed in one go. Shorter sums have smaller errors, and are then summed themselves.
_DEPTH = 128

# Roundings of a number of a product beside those of its sums: that of the right factor to float32, one where the bound
# is added, and two in computing the bound, each of which counts twice to be on the safe side.
_OTHERS = 8

# The norms of a row of the left factor, and of a column of the right one, between which the bound covers what float32
# loses of numbers below 2^-126, and nothing overflows.
_SHORT = 2.0**-40
_LONG = 2.0**20

# Numbers of a product that are computed at a time: 2 MiB. Smaller blocks wait longer for Python, which starts each of
# them: with an eighth of it on two threads, a merge of rank 16 took 1.4 times as long (by hand).
_BLOCK = 1 << 19


@dataclass(frozen=True)
class LeftFactor:
    """The left factor of products, (R, K)."""

    values: Tensor

    @cached_property
    def norms(self) -> Tensor:
        """The norms of the rows, (R,) in float64. Not every device has that."""
        return _norms(self.values)


@dataclass(frozen=True)
class RightFactor:
    """The right factor of products, prepared once for all rows of the left one.

    What is prepared are buffers: they are valid until this thread prepares another right factor.

    Args:
        values (`Tensor`): (K, C), in any dtype.
    """

    values: Tensor

    @cached_property
    def narrow(self) -> Buffer:
        """The values in float32, (K, C)."""
        values = self.values
        return scratch("right in float32", tuple(values.shape), torch.float32, values.device).copy_(values)

    @cached_property
    def columns(self) -> Buffer:
        """The columns in float64, each one in a row of its own, (C, K)."""
        values = self.values.T
        return scratch("columns", tuple(values.shape), torch.float64, values.device).copy_(values)

    @cached_property
    def norms(self) -> Tensor:
        """The norms of the columns, (C,) in float64."""
        return _norms(self.columns)

    @cached_property
    def is_bounded(self) -> bool:
        """`True` if there is a bound on the errors of products in float32, as far as this factor is concerned."""
        return multiplies_in_float32() and bool(self.norms.max() <= _LONG)  # NaN is not below anything

    @cached_property
    def column_errors(self) -> Tensor:
        """The largest error of each column, relative to the norm of the row of the left factor, (C,) in float32.

        A sum of K products is off by K roundings of the sum of magnitudes at most, in whatever order it is summed
        (Higham, 2002, "Accuracy and stability of numerical algorithms", eq. 3.5), and by Cauchy-Schwarz that is below
        the product of both norms.
        """
        rank = len(self.values)
        roundings = (min(rank, _DEPTH) + rank // _DEPTH + _OTHERS) * _UNIT
        return (self.norms * (roundings / (1 - roundings))).float()


@dataclass(frozen=True)
class Product:
    """A product left @ right that is not computed yet, or some rows of it.

    Args:
        whole_left ([`LeftFactor`]): (R, K).
        right ([`RightFactor`]): (K, C).
        part (`slice`): Which rows of the left factor count.

    Example:

    ```python
    >>> import torch
    >>> from dem_hub.numerics.products import Product
    >>> product = Product.of(torch.ones(3, 2), torch.ones(2, 5))
    >>> next(product.blocks()).values[0]
    tensor([2., 2., 2., 2., 2.])

    ```
    """

    whole_left: LeftFactor
    right: RightFactor
    part: slice

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> "Product":
        """Return the product of two factors, (R, K) and (K, C)."""
        return cls(LeftFactor(left), RightFactor(right), slice(None))

    def rows(self, rows: slice) -> "Product":
        """Return some rows of the whole product."""
        return replace(self, part=rows)

    @property
    def left(self) -> Tensor:
        """The rows of the left factor that count."""
        return self.whole_left.values[self.part]

    @property
    def row_norms(self) -> Tensor:
        """Their norms, in float64."""
        return self.whole_left.norms[self.part]

    @property
    def is_bounded(self) -> bool:
        """`True` if there is a bound on the errors of the product in float32."""
        return self.left.dtype == torch.float32 and self.right.is_bounded and bool(self.row_norms.max() <= _LONG)

    def added_to(self, total: Tensor) -> Tensor:
        """Add the product to a tensor in place, in the tensor's own dtype, and return the tensor."""
        return total.addmm_(self.left.to(total.dtype), self.right.values.to(total.dtype))

    def blocks(self) -> Iterator["Block"]:
        """Compute the product in float32, a block of rows at a time; each is valid until the next."""
        right = self.right
        all_left = self.left
        row_norms = self.row_norms.float()
        count = max(1, _BLOCK // max(1, right.values.shape[1]))
        for start in range(0, len(all_left), count):
            rows = slice(start, start + count)
            left = all_left[rows].contiguous()
            yield Block(rows, _multiply(left, right.narrow), left, right.columns, row_norms[rows], right.column_errors)


@dataclass(frozen=True)
class Block:
    """Some rows of a product in float32, with what bounds their errors and what they are computed from.

    Args:
        rows (`slice`): Which rows of the product they are.
        values (`Tensor`): The product, (R, C) in float32; (0, C) where there is none.
        left (`Tensor`): The left factor, (R, K) in float32.
        columns (`Tensor`): The columns of the right factor, (C, K) in float64.
        row_norms (`Tensor`): (R,) in float32.
        column_errors (`Tensor`): (C,) in float32. A value is off by at most the norm of its row times this.
    """

    rows: slice
    values: Tensor
    left: Tensor
    columns: Tensor
    row_norms: Tensor
    column_errors: Tensor

    @classmethod
    def of_nothing(cls, count: int, width: int) -> "Block":
        """Return what stands for no product, in all of `count` rows and `width` columns."""
        zeros = partial(torch.zeros, dtype=torch.float32, device="cpu")
        columns = torch.zeros((width, 0), dtype=torch.float64, device="cpu")
        return cls(slice(0, count), zeros((0, width)), zeros((count, 0)), columns, zeros(count), zeros(width))


def _multiply(left: Tensor, right: Tensor) -> Buffer:
    """Return left (R, K) @ right (K, C) in float32, summed `_DEPTH` products at a time."""
    shape = (len(left), right.shape[1])
    product = scratch("product", shape, torch.float32, left.device)
    torch.mm(left[:, :_DEPTH], right[:_DEPTH], out=product)
    for start in range(_DEPTH, len(right), _DEPTH):
        part = scratch("part of a product", shape, torch.float32, left.device)
        depth = slice(start, start + _DEPTH)
        product += torch.mm(left[:, depth], right[depth], out=part)
    return product


def multiplies_in_float32() -> bool:
    """Check that torch may not use fewer bits than float32's for products of matrices in float32.

    A program can allow it, `torch.set_float32_matmul_precision("medium")`, and so can a variable of oneDNN.
    """
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None:  # torch before 2.9
        is_allowed = torch.get_float32_matmul_precision() != "highest"
    else:
        is_allowed = matmul.fp32_precision not in ("none", "ieee")
    mode = os.environ.get("ONEDNN_DEFAULT_FPMATH_MODE", os.environ.get("DNNL_DEFAULT_FPMATH_MODE", "strict"))
    return not is_allowed and mode.lower() == "strict"


def _norms(rows: Tensor) -> Tensor:
    """Return the norm of each row, at least `_SHORT` if it is not 0."""
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    return torch.where(norms == 0, norms, norms.clamp(min=_SHORT))
