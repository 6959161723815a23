"""Loss, gradient and Gauss-Newton curvature of one distribution, summed over its tokens from their logits.

Sums, and not means, are kept: blocks of tokens are added one after another, and processes add up theirs. The numbers
are float64 on the CPU, because not every device has float64.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dem_hub.search.solve.local_model import Quadratic


@dataclass
class SummedStatistics:
    """Sums over tokens for N coefficients.

    `values`, (2 + N + N * N,) in float64, has the number of tokens, the loss, the gradient and the curvature, row by
    row. It is one tensor so that one reduction adds the sums of all processes.
    """

    values: Tensor

    @classmethod
    def zeros(cls, count: int) -> "SummedStatistics":
        """Return the sums over no tokens, for `count` coefficients."""
        return cls(torch.zeros(2 + count + count * count, dtype=torch.float64, device="cpu"))

    def add(self, logits: Tensor, moves: Tensor) -> None:
        """Add the statistics of T tokens over V logits, of which the first is that of the token that came.

        Args:
            logits (`Tensor`): (T, V), float32.
            moves (`Tensor`): (N, T, V), float32, contiguous; the derivative of the logits with respect to each
                coefficient.

        Source: the gradient and Gauss-Newton matrix of softmax cross-entropy, sum_t (p - y) . J_i and
        sum_t p . (J_i * J_j) - (p . J_i)(p . J_j), with J_i = d logits / d c_i.
        """
        count = len(moves)
        log_probabilities = logits.log_softmax(-1)
        log_likelihood = float(log_probabilities[:, 0].cpu().double().sum())
        probabilities = log_probabilities.exp_()
        flat_moves = moves.view(count, -1)
        weighted = torch.empty_like(probabilities)
        expected = []
        second_moments = []
        for move in moves:
            torch.mul(probabilities, move, out=weighted)
            expected.append(weighted.sum(-1))
            second_moments.append(flat_moves @ weighted.view(-1))
        means = torch.stack(expected).cpu().double()  # (N, T)
        of_targets = moves[:, :, 0].cpu().double()
        self.values[0] += len(logits)
        self.values[1] -= log_likelihood
        self.values[2 : 2 + count] += (means - of_targets).sum(1)
        self.values[2 + count :] += (torch.stack(second_moments).cpu().double() - means @ means.T).reshape(-1)

    def mean(self) -> Quadratic:
        """Return loss, gradient and curvature of the mean token."""
        tokens = float(self.values[0])
        count = _count_coefficients(len(self.values))
        gradient = self.values[2 : 2 + count] / tokens
        curvature = self.values[2 + count :].reshape(count, count) / tokens
        # The sums of row i, column j and of row j, column i differ in their last bits, and solvers need a symmetric
        # matrix.
        return Quadratic(float(self.values[1]) / tokens, gradient, (curvature + curvature.T) / 2)


def _count_coefficients(length: int) -> int:
    """Return the N for which 2 + N + N * N is `length`."""
    # (N + 1/2)^2 = length - 2 + 1/4.
    return round(math.sqrt(length - 2 + 0.25) - 0.5)
