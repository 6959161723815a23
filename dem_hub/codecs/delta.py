"""A decoded delta, and the one way in which deltas are added to a base.

Every codec decodes to `left @ right + dense`, and either part may be missing. So the factors of all vectors can be
put side by side and summed by one matrix product, whatever codecs they came from. Letters: R rows, C columns, K rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.numerics.buffers import scratch

Factors = tuple[Tensor, Tensor]  # (R, K) and (K, C)
Scaled = tuple[float, "Delta"]  # a coefficient and a delta


@dataclass(frozen=True)
class Delta:
    """delta = left @ right + dense + rest.

    `left` is (R, K) and `right` is (K, C), for matrices only. `dense` has the shape of the slice that was asked for.
    `rest` has the same shape; it holds the bits below the precision of `dense`, and is added after it. All are of any
    float dtype.
    """

    left: Tensor | None = None
    right: Tensor | None = None
    dense: Tensor | None = None
    rest: Tensor | None = None

    def rows(self, part: tuple[slice, ...]) -> "Delta":
        """Return some rows: `part` is one slice, or empty for a scalar."""
        return Delta(_rows(self.left, part), self.right, _rows(self.dense, part), _rows(self.rest, part))


def _rows(tensor: Tensor | None, part: tuple[slice, ...]) -> Tensor | None:
    return tensor[part] if tensor is not None else None


def combine_factors(deltas: Sequence[Scaled], dtype: torch.dtype) -> tuple[Factors | None, list[Scaled]]:
    """Write a sum of deltas as one product of two factors, and the dense deltas.

    The factors of all deltas are put side by side: [B_1 ... B_n] and [c_1 A_1; ...; c_n A_n].

    Args:
        deltas (`Sequence[tuple[float, Delta]]`): coefficients and deltas.
        dtype (`torch.dtype`): the dtype of the right factor, into which the coefficients are multiplied. The left
            factor is only copied: it is float32, or of this dtype too if a delta's left factor is float64.

    Returns:
        `tuple[Factors | None, list[tuple[float, Delta]]]`: both factors, or `None` if no delta has any, and what is
            dense, with its coefficients. On the CPU the factors are buffers: they are valid until the next call from
            this thread.
    """
    dense = []
    factored = []
    for coefficient, delta in deltas:
        if delta.dense is not None:
            dense.append((coefficient, Delta(dense=delta.dense, rest=delta.rest)))
        if delta.left is not None and delta.right is not None:
            factored.append((coefficient, delta.left, delta.right))
    if not factored:
        return None, dense
    ranks = [right.shape[0] for _, _, right in factored]
    _, first_left, first_right = factored[0]
    left_dtype = dtype
    if all(left.dtype.itemsize <= 4 for _, left, _ in factored):
        left_dtype = torch.float32
    all_left = scratch("left", (first_left.shape[0], sum(ranks)), left_dtype, first_left.device)
    all_right = scratch("right", (sum(ranks), first_right.shape[1]), dtype, first_right.device)
    places = zip(all_left.split(ranks, dim=1), all_right.split(ranks), strict=True)
    for (coefficient, left, right), (columns, rows) in zip(factored, places, strict=True):
        columns.copy_(left)
        rows.copy_(right).mul_(coefficient)
    return (all_left, all_right), dense


def add_deltas(total: Tensor, deltas: Sequence[Scaled]) -> Tensor:
    """Add coefficient * delta for each pair, in place, in the dtype and on the device of `total`.

    All factors are one product, [B_1 ... B_n] @ [c_1 A_1; ...; c_n A_n]. The dense deltas follow, in the order given.

    Args:
        total (`Tensor`): the base's slice, float32 or float64; it is changed.
        deltas (`Sequence[tuple[float, Delta]]`): coefficients and deltas.

    Returns:
        `Tensor`: `total`.

    Example:

    ```python
    >>> import torch
    >>> from dem_hub.codecs.delta import Delta, add_deltas
    >>> low = Delta(left=torch.ones(2, 1), right=torch.ones(1, 3))
    >>> add_deltas(torch.zeros(2, 3), [(0.5, low), (2.0, Delta(dense=torch.ones(2, 3)))])
    tensor([[2.5000, 2.5000, 2.5000],
            [2.5000, 2.5000, 2.5000]])

    ```
    """
    factors, dense = combine_factors(deltas, total.dtype)
    if factors is not None:
        left, right = factors
        total.addmm_(left.to(total), right.to(total))
    for coefficient, delta in dense:
        for part in (delta.dense, delta.rest):
            if part is not None:
                total.add_(_widen(part, total).to(total.device), alpha=coefficient)
    return total


def _widen(part: Tensor, total: Tensor) -> Tensor:
    """Return `part` in the dtype of `total`: torch is slow at adding another dtype. A copy is a buffer."""
    if part.dtype == total.dtype:
        return part
    return scratch("wide", tuple(part.shape), total.dtype, total.device).copy_(part)


def inner(first: Delta, second: Delta) -> float:
    """Return <first, second>, the sum of the products of their elements, without multiplying factors out.

    <L1 R1, L2 R2> = sum((L1^T L2) * (R1 R2^T)), and <D, L R> = sum((D R^T) * L). `rest` is left out, because it is
    too small to matter.
    """
    total = 0.0
    if first.left is not None and second.left is not None and first.right is not None and second.right is not None:
        of_left = first.left.T.double() @ second.left.double()
        of_right = first.right.double() @ second.right.T.double()
        total += _sum_of_products(of_left, of_right)
    for dense, factors in ((first.dense, second), (second.dense, first)):
        if dense is not None and factors.left is not None and factors.right is not None:
            total += _sum_of_products(dense.double() @ factors.right.T.double(), factors.left)
    if first.dense is not None and second.dense is not None:
        total += _sum_of_products(first.dense, second.dense)
    return total


def _sum_of_products(first: Tensor, second: Tensor) -> float:
    return float((first.double() * second.double()).sum())


def to_dense(delta: Delta, like: Tensor) -> Tensor:
    """Return the delta as one float32 tensor of the shape and on the device of `like`."""
    return add_deltas(torch.zeros_like(like, dtype=torch.float32), [(1.0, delta)])
