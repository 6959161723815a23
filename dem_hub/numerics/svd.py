"""Truncated singular value decompositions, the best approximation of a matrix at some rank (Eckart and Young, 1936).

A few directions of many come from a block Krylov space that starts at seeded random vectors (Musco and Musco, 2015, algorithm 2): it
converges far faster than the power iterations of `torch.svd_lowrank`, on a flat spectrum, as training leaves it, above all; and faster,
for as many directions of the space, from a few vectors in many steps than from many in a few (Meyer, Musco and Musco, 2024). Most
directions come from the eigenvectors of the Gram matrix in float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from dem_hub.numerics.norms import squared_norm

DEFAULT_RANK = 32
EXACT_SIZE = 1024
OVERSAMPLING = 8
KRYLOV_STEPS = (
    13  # as many leave a few 1e-4 of the error, relative, above the best on pure noise, where nothing converges slower
)
_ENOUGH = 14  # blocks, if there is to be a space at all; with fewer all directions are truer, and as cheap in so small a matrix
_NARROW = 20  # blocks of a space that is a large part of all
_SHARED = 0.5  # the most that basis and block may have in common after the first pass, of a sum of squares
_BLOCK = 1 << 22  # elements made float64 at a time
_STRIP = 128  # columns of a Gram matrix
_COPIED, _OFTEN = 1 << 23, 8  # elements of a matrix, and how often it is used, if copies are to pay


def balanced_factors(matrix: Tensor, *, rank: int | None = None, energy: float | None = None) -> tuple[Tensor, Tensor]:
    """Left (R, K) and right (K, C) factors that share the singular values evenly, so that both keep their precision in a short dtype.

    Takes what [`truncated_svd`] takes.
    """
    return balance(*truncated_svd(matrix, rank=rank, energy=energy))


def balance(left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Share the singular values evenly between both factors."""
    root = values.sqrt()
    return left * root, root[:, None] * right


def truncated_svd(
    matrix: Tensor,
    *,
    rank: int | None = None,
    energy: float | None = None,
    steps: int = KRYLOV_STEPS,
    width: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The leading singular triplets of a matrix.

    Args:
        matrix (`Tensor`): (R, C) float32.
        rank (`int`, *optional*): how many.
        energy (`float`, *optional*): or as few as hold this share of the squared Frobenius norm, 0 to 1.
        steps (`int`): of the Krylov space; fewer where something else takes up what is missed.
        width (`int`, *optional*): directions that the space begins with; a quarter of `rank` and a few, by default. The space has
            `width * (steps + 1)`, which must not be fewer than `rank`, and 7/16 of all or `3 * rank` at the most.

    Returns:
        `tuple[Tensor, Tensor, Tensor]`: (R, K), (K,) descending, and (K, C), float32.

    Example:

    ```python
    >>> import torch
    >>> from dem_hub.numerics.svd import truncated_svd
    >>> matrix = torch.outer(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0, 0.0]))
    >>> left, values, right = truncated_svd(matrix, rank=1)
    >>> round(values.item(), 4), torch.allclose(left * values @ right, matrix, atol=1e-6)
    (10.0, True)

    ```
    """
    full = min(matrix.shape)
    if rank is not None:
        rank = min(rank, full)
        width = _width(rank) if width is None else width
        size, width = _space(rank, full, width, steps)
        few = 3 * size <= 2 * full and size >= min(steps + 1, _ENOUGH) * width
        return _krylov_svd(matrix, rank, size, width) if few or full > EXACT_SIZE else _gram_svd(matrix, rank, None)
    assert energy is not None
    if full <= EXACT_SIZE:
        return _gram_svd(matrix, full, energy)
    target = energy * squared_norm(matrix)
    tried = DEFAULT_RANK
    while True:
        left, values, right = _krylov_svd(matrix, tried, *_space(tried, full, _width(tried), steps))
        held = values.double().square().cumsum(0)
        if held[-1] >= target or tried == full:
            count = min(int((held < target).sum()) + 1, len(values))
            return left[:, :count], values[:count], right[:count]
        tried = min(2 * tried, full)


def _width(rank: int) -> int:
    return rank // 4 + OVERSAMPLING


def _space(rank: int, full: int, width: int, steps: int) -> tuple[int, int]:
    """How many directions a Krylov space has, and in blocks of how many: where it is a large part of all, smaller ones are truer."""
    size, most = (steps + 1) * width, max(7 * full // 16, 3 * rank)
    return (
        (min(size, full), width) if size <= most else (min(most, full), min(width, max(OVERSAMPLING, most // _NARROW)))
    )


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
        for first in range(0, columns, _STRIP):  # the lower triangle, which is all that is looked at
            strip = slice(first, first + _STRIP)
            gram[first:, strip].addmm_(block[:, first:].T, block[:, strip])
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


def _multipliers(matrix: Tensor, times: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """block @ matrix.T and block @ matrix; in oneDNN, on some processors twice as fast as MKL, where its copies of the matrix pay."""
    if (
        matrix.device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and matrix.numel() <= _COPIED
        and times >= _OFTEN
    ):
        rows, columns = matrix.to_mkldnn(), matrix.T.to_mkldnn()
        return (lambda block: linear(block.to_mkldnn(), rows).to_dense()), (
            lambda block: linear(block.to_mkldnn(), columns).to_dense()
        )
    return (lambda block: block @ matrix.T), (lambda block: block @ matrix)


def _krylov_svd(matrix: Tensor, rank: int, size: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best approximation within the span of X, (M'M)X, (M'M)^2 X ..., X = M' times random vectors of one seed."""
    rows, columns = matrix.shape
    if rows < columns:
        right, values, left = _krylov_svd(matrix.T, rank, size, width)
        return left.T, values, right.T
    forth, back = _multipliers(matrix, size // width)
    start = torch.randn(width, rows, generator=torch.Generator().manual_seed(0)).to(matrix.device)
    basis, image = (
        matrix.new_empty(size, columns),
        matrix.new_empty(size, rows),
    )  # vectors are rows; image = forth(basis)
    done, block, shared = 0, back(start), matrix.new_zeros(())
    while True:
        known, block = basis[:done], block[: size - done]
        for _ in range(2):  # once leaves what rounding adds where most of the block was in the basis
            overlap = block @ known.T
            block = torch.linalg.qr((block - overlap @ known).T)[0].T
        shared = torch.maximum(shared, overlap.square().sum())
        product = forth(block)
        basis[done : done + len(block)], image[done : done + len(block)] = block, product
        done += len(block)
        if done == size:
            break
        block = back(
            product / product.abs().amax().clamp_(min=torch.finfo(product.dtype).tiny)
        )  # no square of it underflows
    if shared > _SHARED:  # where all of a block was in the basis, not even twice is enough
        basis = torch.linalg.qr(basis.T)[0].T
        image = forth(basis)
    left, values, right = _gram_svd(image.T, rank, None)
    return left, values, right @ basis
