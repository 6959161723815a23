"""Truncated singular value decompositions: the best approximation of a matrix at some rank (Eckart and Young, 1936).

A few directions of many come from a block Krylov space that starts at seeded random vectors (Musco and Musco, 2015,
algorithm 2). It converges far faster than the power iterations of `torch.svd_lowrank`, above all on a flat spectrum,
which training leaves. For the same size of the space, a few vectors in many steps are better than many vectors in a
few steps (Meyer, Musco and Musco, 2024). Many directions come from the eigenvectors of the Gram matrix in float64.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import linear

from dem_hub.numerics.norms import squared_norm

# The rank of `lowrank` where none is given. In 4 bits, with signs, 32 directions kept 99.7 % and more of
# SmolLM2-135M's fine-tunes.
DEFAULT_RANK = 32

# The smaller side of a matrix up to which all directions are computed, if the Krylov space would be a large part of
# them.
EXACT_SIZE = 1024

# Vectors that a Krylov space begins with, beside a quarter of the rank.
OVERSAMPLING = 8

# Steps of a Krylov space: as many leave a few 1e-4 of the error, relative, above the best on pure noise, where
# nothing converges slower.
KRYLOV_STEPS = 13

# Blocks that a space must have in a small matrix. With fewer blocks, all directions are more accurate and as cheap
# there.
_MIN_BLOCKS = 14

# Blocks of a space that is a large part of all directions. Chosen by hand, not measured here.
_MANY_BLOCKS = 20

# The most that a basis and a new block may share after the first pass, as a sum of squares, before all is made
# orthogonal again.
_SHARED = 0.5

# Elements that are made float64 at a time, 32 MiB; and columns of a strip of the Gram matrix. The order of sums
# depends on both.
_BLOCK = 1 << 22
_STRIP = 128

# oneDNN needs copies of the matrix in a format of its own. They pay for matrices up to so many elements that are used
# at least so often.
_MAX_COPIED = 1 << 23
_MIN_USES = 8


def balanced_factors(matrix: Tensor, *, rank: int | None = None, energy: float | None = None) -> tuple[Tensor, Tensor]:
    """Return left (R, K) and right (K, C) factors that share the singular values evenly; see [`truncated_svd`].

    Shared evenly, both factors keep their precision in a short dtype.
    """
    return balance(*truncated_svd(matrix, rank=rank, energy=energy))


def balance(left: Tensor, values: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Return the factors of a decomposition, with the singular values shared evenly between both."""
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
    """Return the leading singular triplets of a matrix.

    Args:
        matrix (`Tensor`): (R, C) float32.
        rank (`int`, *optional*): how many.
        energy (`float`, *optional*): instead of `rank`, as few as hold this share of the squared Frobenius norm, 0 to
            1.
        steps (`int`): the steps of the Krylov space; fewer are enough if something else takes up what is missed.
        width (`int`, *optional*): the vectors that the space begins with; by default a quarter of `rank` and a few.
            The space has `width * (steps + 1)` vectors, not fewer than `rank`, and at most 7/16 of all directions or
            `3 * rank`.

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
        size, width = _choose_space(rank, full, _choose_width(rank) if width is None else width, steps)
        # A space of more than two thirds of all directions is not cheaper than all of them.
        is_small_space = 3 * size <= 2 * full and size >= min(steps + 1, _MIN_BLOCKS) * width
        if is_small_space or full > EXACT_SIZE:
            return _krylov_svd(matrix, rank, size, width)
        return _gram_svd(matrix, rank, None)
    assert energy is not None
    if full <= EXACT_SIZE:
        return _gram_svd(matrix, full, energy)
    target = energy * squared_norm(matrix)
    trial_rank = DEFAULT_RANK
    while True:
        size, width = _choose_space(trial_rank, full, _choose_width(trial_rank), steps)
        left, values, right = _krylov_svd(matrix, trial_rank, size, width)
        energies = values.double().square().cumsum(0)
        if energies[-1] >= target or trial_rank == full:
            count = min(int((energies < target).sum()) + 1, len(values))
            return left[:, :count], values[:count], right[:count]
        trial_rank = min(2 * trial_rank, full)


def _choose_width(rank: int) -> int:
    return rank // 4 + OVERSAMPLING


def _choose_space(rank: int, full: int, width: int, steps: int) -> tuple[int, int]:
    """Return the size of a Krylov space, and the size of its blocks.

    A space that is a large part of all directions is more accurate in smaller blocks.
    """
    size = (steps + 1) * width
    # 7/16 of all directions: past about half of them, all directions are cheaper.
    most = max(7 * full // 16, 3 * rank)
    if size <= most:
        return min(size, full), width
    return min(most, full), min(width, max(OVERSAMPLING, most // _MANY_BLOCKS))


def _gram_svd(matrix: Tensor, rank: int, energy: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the leading singular triplets from the eigenvectors of the smaller Gram matrix.

    There are `rank` of them; with `energy`, as few as hold this share of the sum of the squared singular values.

    The eigenvalues are squared singular values, and squaring costs half of the digits. Of the 16 digits of float64
    there remain 8, and the float32 result has only 7.
    """
    rows, columns = matrix.shape
    if rows < columns:
        right, values, left = _gram_svd(matrix.T, rank, energy)
        return left.T, values, right.T
    gram = torch.zeros(columns, columns, dtype=torch.float64, device=matrix.device)
    step = max(1, _BLOCK // columns)
    for start in range(0, rows, step):
        block = matrix[start : start + step].double()
        # `eigh` reads the lower triangle only.
        for first in range(0, columns, _STRIP):
            strip = slice(first, first + _STRIP)
            gram[first:, strip].addmm_(block[:, first:].T, block[:, strip])
    squares, vectors = torch.linalg.eigh(gram)
    squares = squares.flip(0).clamp_(min=0)
    vectors = vectors.flip(1)
    if energy is not None:
        energies = squares.cumsum(0)
        rank = min(int((energies < energy * energies[-1]).sum()) + 1, len(squares))
    values = squares[:rank].sqrt()
    vectors = vectors[:, :rank]
    # Values that the squares cannot tell from 0 are set to 0. Otherwise a matrix of lower rank would get directions
    # of noise over noise.
    values = torch.where(values > values[:1] * torch.finfo(torch.float64).eps ** 0.5, values, 0.0)
    left = matrix @ torch.where(values > 0, vectors / values, 0.0).float()
    return left, values.float(), vectors.T.float()


def _multipliers(matrix: Tensor, times: int) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """Return two functions of a block: block @ matrix.T and block @ matrix.

    Where its copies of the matrix pay, they use oneDNN, which is twice as fast as MKL on some processors.
    """
    can_copy = matrix.device.type == "cpu" and torch.backends.mkldnn.is_available()
    if can_copy and matrix.numel() <= _MAX_COPIED and times >= _MIN_USES:
        copies = (matrix.to_mkldnn(), matrix.T.to_mkldnn())
        return (
            lambda block: linear(block.to_mkldnn(), copies[0]).to_dense(),
            lambda block: linear(block.to_mkldnn(), copies[1]).to_dense(),
        )
    return (lambda block: block @ matrix.T, lambda block: block @ matrix)


def _krylov_svd(matrix: Tensor, rank: int, size: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the best approximation within the span of X, (M'M)X, (M'M)^2 X ..., where X is M' times random vectors
    of a fixed seed.
    """
    rows, columns = matrix.shape
    if rows < columns:
        right, values, left = _krylov_svd(matrix.T, rank, size, width)
        return left.T, values, right.T
    forth, back = _multipliers(matrix, size // width)
    start = torch.randn(
        width, rows, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float32, device="cpu"
    ).to(matrix.device)
    # Vectors are rows, and image = forth(basis).
    basis = matrix.new_empty(size, columns)
    image = matrix.new_empty(size, rows)
    done = 0
    block = back(start)
    shared = matrix.new_zeros(())
    while True:
        known = basis[:done]
        block = block[: size - done]
        # Twice: one pass leaves rounding errors if most of the block lies in the basis already.
        for _ in range(2):
            overlap = block @ known.T
            block = torch.linalg.qr((block - overlap @ known).T)[0].T
        shared = torch.maximum(shared, overlap.square().sum())
        product = forth(block)
        basis[done : done + len(block)] = block
        image[done : done + len(block)] = product
        done += len(block)
        if done == size:
            break
        # Scaled to 1, so that no square of it underflows.
        block = back(product / product.abs().amax().clamp_(min=torch.finfo(product.dtype).tiny))
    # If all of a block lay in the basis, not even two passes are enough.
    if shared > _SHARED:
        basis = torch.linalg.qr(basis.T)[0].T
        image = forth(basis)
    left, values, right = _gram_svd(image.T, rank, None)
    return left, values, right @ basis
