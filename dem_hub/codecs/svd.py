"""Truncated singular value decompositions, the best approximation of a matrix at some rank (Eckart and Young, 1936).

Up to `EXACT_SIZE` rows or columns from the eigenvectors of the Gram matrix in float64, 5 to 8 times faster than `torch.linalg.svd`;
above that from a seeded randomised range finder with power iterations (Halko, Martinsson and Tropp, 2011, algorithm 4.4).
"""

import torch
from torch import Tensor

from dem_hub.codecs.measure import squared_norm

DEFAULT_RANK = 32
EXACT_SIZE = 1024
OVERSAMPLING = 16
POWER_ITERATIONS = 4
_BLOCK = 1 << 22


def balanced_factors(matrix: Tensor, *, rank: int | None = None, energy: float | None = None) -> tuple[Tensor, Tensor]:
    """Left (R, K) and right (K, C) factors that share the singular values evenly, so that both keep their precision in a short dtype.

    Takes what [`truncated_svd`] takes.
    """
    return balance(*truncated_svd(matrix, rank=rank, energy=energy))


def balance(left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Share the singular values evenly between both factors."""
    root = values.sqrt()
    return left * root, root[:, None] * right


def truncated_svd(matrix: Tensor, *, rank: int | None = None, energy: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triplets of a matrix.

    Args:
        matrix (`Tensor`): (R, C) float32.
        rank (`int`, *optional*): how many.
        energy (`float`, *optional*): or as few as hold this share of the squared Frobenius norm, 0 to 1.

    Returns:
        `tuple[Tensor, Tensor, Tensor]`: (R, K), (K,) descending, and (K, C), float32.

    Example:

    ```python
    >>> import torch
    >>> from dem_hub.codecs.svd import truncated_svd
    >>> matrix = torch.outer(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0, 0.0]))
    >>> left, values, right = truncated_svd(matrix, rank=1)
    >>> round(values.item(), 4), torch.allclose(left * values @ right, matrix, atol=1e-6)
    (10.0, True)

    ```
    """
    rows, columns = matrix.shape
    full = min(rows, columns)
    if full <= EXACT_SIZE:
        return _gram_svd(matrix, full if rank is None else min(rank, full), energy)
    if rank is not None:
        return _randomised_svd(matrix, min(rank, full))
    assert energy is not None
    target = energy * squared_norm(matrix)
    tried = DEFAULT_RANK
    while True:
        left, values, right = _randomised_svd(matrix, tried)
        held = values.double().square().cumsum(0)
        if held[-1] >= target or tried == full:
            count = min(int((held < target).sum()) + 1, len(values))
            return left[:, :count], values[:count], right[:count]
        tried = min(2 * tried, full)


def _gram_svd(matrix: Tensor, rank: int, energy: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """The SVD from the eigenvectors of the smaller Gram matrix, in float64, so that squaring the condition number does no harm."""
    rows, columns = matrix.shape
    if rows < columns:
        right, values, left = _gram_svd(matrix.T, rank, energy)
        return left.T, values, right.T
    gram = torch.zeros(columns, columns, dtype=torch.float64, device=matrix.device)
    step = max(1, _BLOCK // columns)
    for start in range(0, rows, step):
        block = matrix[start : start + step].double()
        gram.addmm_(block.T, block)
    squares, vectors = torch.linalg.eigh(gram)
    squares, vectors = squares.flip(0).clamp_(min=0), vectors.flip(1)
    if energy is not None:
        held = squares.cumsum(0)
        rank = min(int((held < energy * held[-1]).sum()) + 1, len(squares))
    values, vectors = squares[:rank].sqrt(), vectors[:, :rank]
    # What the squares cannot tell from 0 is 0: of a matrix of lower rank, the other directions are nothing, not noise divided by noise.
    values = torch.where(values > values[:1] * torch.finfo(torch.float64).eps ** 0.5, values, 0.0)
    left = matrix @ torch.where(values > 0, vectors / values, 0.0).float()
    return left, values.float(), vectors.T.float()


def _randomised_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """`torch.svd_lowrank` with a seed of its own: the same matrix gives the same factors."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # seeding seeds them all
        torch.manual_seed(0)
        size = min(rank + OVERSAMPLING, *matrix.shape)
        left, values, right = torch.svd_lowrank(matrix, q=size, niter=POWER_ITERATIONS)
    return left[:, :rank], values[:rank], right[:, :rank].T
