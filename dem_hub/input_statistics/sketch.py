"""A sketch of second moments: what is kept of a stream of inputs, in memory that does not grow with them.

Of G = X^T X only Y = G @ Omega is summed up, for a random matrix Omega of few columns. The leading eigenvectors of G
come back from Y and Omega:

    G is nearly Y (Omega^T Y)^-1 Y^T

Of the 7B Llama (32 layers; inputs of 4,096 three times and 11,008) whole moments would take 22 GB in float32, and
sketches for 128 eigenvectors take 1.15 GB. A sum is linear in its inputs, so sketches of several processes add up.

Source: Tropp, Yurtsever, Udell and Cevher, *Fixed-Rank Approximation of a Positive-Semidefinite Matrix from Streaming
Data* (NeurIPS 2017), algorithm 3.
"""

from weakref import WeakValueDictionary

import torch
from torch import Tensor

from dem_hub.input_statistics.moments import Moments

# Columns of Omega for each eigenvector that is wanted. On SmolLM2's demo, 384 for 128 eigenvectors keep 97 % of
# RegMean's gain with exact eigenvectors of the same number (benchmarks/README.md, `regmean.py`).
COLUMNS = 3

_SEED = 0

# Those in use, by size, columns and device.
_test_matrices: WeakValueDictionary[tuple[int, int, torch.device], Tensor] = WeakValueDictionary()


class MomentSketch:
    """The sum of inputs' outer products, as far as `rank` eigenvectors and the diagonal need it.

    Args:
        size (`int`): The size of an input, D.
        rank (`int`): The number of leading eigenvectors that are wanted, K.
        device (`torch.device`): Where the inputs are. The sums stay there, in float32.
    """

    def __init__(self, size: int, rank: int, device: torch.device) -> None:
        self.size = size
        self.rank = min(rank, size)
        self.tests = _test_matrix(size, min(COLUMNS * rank, size), device)
        self.product = torch.zeros_like(self.tests)
        self.squares = torch.zeros(size, dtype=torch.float32, device=device)

    def add(self, inputs: Tensor) -> None:
        """Add inputs, (T, D), of any float dtype."""
        wide = inputs.to(self.product.dtype)
        # Autocast, in which a model may run, would multiply in 16 bits.
        with torch.autocast(wide.device.type, enabled=False):
            self.product.addmm_(wide.T, wide @ self.tests)
            self.squares += wide.square().sum(0)

    def moments(self, tokens: int) -> Moments:
        """Return the sum over all inputs divided by a number of tokens, in float64 on the CPU.

        Args:
            tokens (`int`): All tokens of the data, also those that did not reach the layer: an expert that saw one
                token of a thousand counts for a thousandth.
        """
        product = self.product.cpu().double() / tokens
        diagonal = self.squares.cpu().double() / tokens
        vectors, values = _leading(product, self.tests.cpu().double(), self.rank)
        # A sketch is never above the matrix, but for rounding: what it holds of an element cannot be more than there
        # is, and of a feature that is 0 for all tokens it holds nothing.
        held = vectors.square() @ values
        excess = held / diagonal.clamp(min=torch.finfo(torch.float64).tiny)
        vectors = vectors * excess.clamp(min=1.0).rsqrt()[:, None]
        return Moments(vectors, values, (diagonal - vectors.square() @ values).clamp_(min=0))


def _test_matrix(size: int, width: int, device: torch.device) -> Tensor:
    """Return Omega: orthonormal columns, or the identity if the sketch is as large as the matrix and thus exact.

    Sketches of one size share it: that of each of a model's layers would take as much memory as all their sums.
    """
    key = (size, width, device)
    matrix = _test_matrices.get(key)
    if matrix is None:
        matrix = _orthonormal(size, width).to(device)
        _test_matrices[key] = matrix
    return matrix


def _orthonormal(size: int, width: int) -> Tensor:
    if width == size:
        return torch.eye(size, dtype=torch.float32, device="cpu")
    generator = torch.Generator().manual_seed(_SEED)
    random = torch.randn(size, width, generator=generator, dtype=torch.float32, device="cpu")
    orthonormal: Tensor = torch.linalg.qr(random)[0]
    return orthonormal


def _leading(product: Tensor, tests: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return the leading eigenvectors (D, K) and eigenvalues (K,) of the matrix whose product with `tests` is given.

    Source: Tropp et al., algorithm 3. The shift keeps the Cholesky factor from failing on a matrix of lower rank.
    """
    norm = float(product.norm())
    if norm == 0:
        return product.new_zeros(len(product), 0), product.new_zeros(0)
    # Sums are in float32, so no smaller shift would do.
    shift = torch.finfo(torch.float32).eps * norm
    shifted = product + shift * tests
    core = tests.T @ shifted
    factor = torch.linalg.cholesky((core + core.T) / 2)
    left, singular, _ = torch.linalg.svd(
        torch.linalg.solve_triangular(factor, shifted.T, upper=False).T, full_matrices=False
    )
    values = (singular[:rank].square() - shift).clamp_(min=0)
    kept = values > 0
    return left[:, :rank][:, kept], values[kept]
