"""A decoded delta, and the one way deltas are added to a base.

Every codec decodes to `left @ right + dense`, either part absent: so the factors of all vectors can be put side by side and summed
by one matrix product, whatever codecs they came from.
Letters: R rows, C columns, K rank.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.numerics.buffers import scratch

Factors = tuple[Tensor, Tensor]  # (R, K) and (K, C)


@dataclass(frozen=True)
class Delta:
    """delta = left @ right + dense + rest.

    `left` is (R, K) and `right` (K, C), for matrices only; `dense` has the shape of the slice that was asked for, and so has `rest`,
    what was below the precision of `dense` and is added after it. Any float dtype.
    """

    left: Tensor | None = None
    right: Tensor | None = None
    dense: Tensor | None = None
    rest: Tensor | None = None

    def rows(self, part: tuple[slice, ...]) -> "Delta":
        """Some rows of it: one slice, or nothing for a scalar."""
        left, dense, rest = (
            tensor[part] if tensor is not None else None for tensor in (self.left, self.dense, self.rest)
        )
        return Delta(left, self.right, dense, rest)


def combine_factors(
    deltas: Sequence[tuple[float, Delta]], dtype: torch.dtype
) -> tuple[Factors | None, list[tuple[float, Delta]]]:
    """The same sum as one product of all factors side by side, [B_1 ... B_n] and [c_1 A_1; ...; c_n A_n], and what is dense.

    The right one is of this dtype, and the left one too, or of float32 where that holds the factors as they are: it has most of the
    numbers. On the CPU they are valid until this thread's next call.
    """
    dense = [
        (coefficient, Delta(dense=delta.dense, rest=delta.rest))
        for coefficient, delta in deltas
        if delta.dense is not None
    ]
    factored = [
        (coefficient, delta.left, delta.right)
        for coefficient, delta in deltas
        if delta.left is not None and delta.right is not None
    ]
    if not factored:
        return None, dense
    ranks = [right.shape[0] for _, _, right in factored]
    _, first, last = factored[0]
    short = torch.float32 if all(left.dtype.itemsize <= 4 for _, left, _ in factored) else dtype
    left = scratch("left", (first.shape[0], sum(ranks)), short, first.device)
    right = scratch("right", (sum(ranks), last.shape[1]), dtype, last.device)
    for (coefficient, one, other), columns, rows in zip(
        factored, left.split(ranks, dim=1), right.split(ranks), strict=True
    ):
        columns.copy_(one)
        rows.copy_(other).mul_(coefficient)
    return (left, right), dense


def add_deltas(total: Tensor, deltas: Sequence[tuple[float, Delta]]) -> Tensor:
    """Add coefficient * delta for each pair, in place, in the dtype and on the device of `total`.

    [B_1 ... B_n] @ [c_1 A_1; ...; c_n A_n] is one product, and what is dense follows in the order given.

    Args:
        total (`Tensor`): the base's slice, float32 or float64.
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
        total.addmm_(*(factor.to(total) for factor in factors))
    for coefficient, delta in dense:
        for part in (delta.dense, delta.rest):
            if part is not None:
                wide = (
                    part
                    if part.dtype == total.dtype
                    else scratch("wide", tuple(part.shape), total.dtype, total.device).copy_(part)
                )
                total.add_(wide.to(total.device), alpha=coefficient)  # torch is slow at adding another dtype
    return total


def inner(first: Delta, second: Delta) -> float:
    """<first, second>, the sum of the products of their elements, from the factors as they are.

    <L1 R1, L2 R2> = sum((L1^T L2) * (R1 R2^T)), and <D, L R> = sum((D R^T) * L): no factored delta is multiplied out. `rest` is too
    small to show.
    """
    total = 0.0
    if first.left is not None and second.left is not None and first.right is not None and second.right is not None:
        total += _product(first.left.T.double() @ second.left.double(), first.right.double() @ second.right.T.double())
    for dense, factors in ((first.dense, second), (second.dense, first)):
        if dense is not None and factors.left is not None and factors.right is not None:
            total += _product(dense.double() @ factors.right.T.double(), factors.left)
    if first.dense is not None and second.dense is not None:
        total += _product(first.dense, second.dense)
    return total


def _product(first: Tensor, second: Tensor) -> float:
    return float((first.double() * second.double()).sum())


def to_dense(delta: Delta, like: Tensor) -> Tensor:
    """The delta as one float32 tensor of the shape and device of `like`."""
    return add_deltas(torch.zeros_like(like, dtype=torch.float32), [(1.0, delta)])
