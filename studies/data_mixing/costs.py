"""What everything costs, in tokens and in floating-point operations, so that "x % cheaper" is computed and not quoted.

    training     6 * parameters * tokens      (forward 2, backward 4)
    evaluation   2 * parameters * tokens

(Kaplan et al., 2020, "Scaling laws for neural language models", section 2.1, without the part of attention that grows with context.)
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Tokens trained on, and tokens that a forward pass was made over."""

    training: float = 0.0
    evaluation: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.training + other.training, self.evaluation + other.evaluation)

    def flops(self, parameters: int) -> float:
        """Floating-point operations on a model of so many parameters."""
        return parameters * (6 * self.training + 2 * self.evaluation)


def total(costs: Sequence[Cost]) -> Cost:
    """Of several things together."""
    return sum(costs, Cost())


def cheaper(ours: Cost, theirs: Cost) -> float:
    """By which share of theirs ours costs less."""
    return 1 - ours.flops(1) / theirs.flops(1)
