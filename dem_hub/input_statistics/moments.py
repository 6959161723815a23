"""Second moments of a layer's inputs: leading eigenvectors, and what they leave of the diagonal."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """The second moments of a layer's inputs: vectors @ diag(values) @ vectors.T + diag(rest).

    The diagonal is exact. Off the diagonal, what the leading eigenvectors do not hold is taken for 0.

    Args:
        vectors (`Tensor`): Leading eigenvectors, (D, K) for inputs of D numbers; K may be 0.
        values (`Tensor`): Their eigenvalues, (K,), all positive.
        rest (`Tensor`): What they leave of the diagonal, (D,), none negative.
    """

    vectors: Tensor
    values: Tensor
    rest: Tensor

    @classmethod
    def of_diagonal(cls, diagonal: Tensor) -> "Moments":
        """Return moments without any off the diagonal."""
        size = len(diagonal)
        return cls(diagonal.new_zeros(size, 0), diagonal.new_zeros(0), diagonal)

    @property
    def size(self) -> int:
        """D, the size of an input."""
        return len(self.rest)

    def to(self, device: torch.device) -> "Moments":
        """Return the moments on a device."""
        return Moments(self.vectors.to(device), self.values.to(device), self.rest.to(device))

    def diagonal(self) -> Tensor:
        """Return the diagonal, (D,)."""
        return self.rest + self.vectors.square() @ self.values

    def dense(self) -> Tensor:
        """Return the matrix, (D, D), for tests and small layers.

        Example:

        ```python
        >>> import torch
        >>> from dem_hub.input_statistics.moments import Moments
        >>> Moments(torch.tensor([[1.0], [0.0]]), torch.tensor([2.0]), torch.tensor([0.0, 3.0])).dense()
        tensor([[2., 0.],
                [0., 3.]])

        ```
        """
        return (self.vectors * self.values) @ self.vectors.T + torch.diag(self.rest)
