"""Losses as quadratics in the coefficients, one a distribution, around one point.

They are what a search leaves behind: any objective over the distributions, any bounds, a vector or a distribution less, is a small
convex problem over these few numbers, with no forward pass. Letters: N vectors, K distributions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Quadratic:
    """loss(point + step) = loss + gradient . step + step . curvature . step / 2, in nats a token; (N,) and (N, N), float64."""

    loss: float
    gradient: Tensor
    curvature: Tensor

    def value(self, step: Tensor) -> Tensor:
        """The loss at a step away."""
        return self.loss + self.gradient @ step + step @ self.curvature @ step / 2

    def slope(self, step: Tensor) -> Tensor:
        """The gradient at a step away."""
        return self.gradient + self.curvature @ step


@dataclass(frozen=True)
class LocalModel:
    """The losses of all distributions around `point`; `names` are the vectors', in the order of its coordinates."""

    names: tuple[str, ...]
    point: tuple[float, ...]
    parts: Mapping[str, Quadratic]

    def losses(self, point: Sequence[float]) -> dict[str, float]:
        """What the losses would be at another point."""
        step = torch.tensor(point, dtype=torch.float64) - torch.tensor(self.point, dtype=torch.float64)
        return {name: float(part.value(step)) for name, part in self.parts.items()}

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        parts = {
            name: {"loss": part.loss, "gradient": part.gradient.tolist(), "curvature": part.curvature.tolist()}
            for name, part in self.parts.items()
        }
        return {"names": list(self.names), "point": list(self.point), "parts": parts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LocalModel":
        """Read what `to_dict` wrote."""
        parts = {
            name: Quadratic(
                part["loss"],
                torch.tensor(part["gradient"], dtype=torch.float64),
                torch.tensor(part["curvature"], dtype=torch.float64),
            )
            for name, part in data["parts"].items()
        }
        return cls(tuple(data["names"]), tuple(data["point"]), parts)


@dataclass
class Sums:
    """Loss, gradient and Gauss-Newton curvature of one distribution, summed over tokens; what processes add up."""

    values: Tensor  # (2 + N + N * N,), float64: tokens, loss, gradient, curvature

    @classmethod
    def zeros(cls, count: int) -> "Sums":
        """Of no tokens."""
        return cls(torch.zeros(2 + count + count * count, dtype=torch.float64))

    def add(self, logits: Tensor, moves: Tensor, targets: Tensor) -> None:
        """Add tokens.

        Args:
            logits (`Tensor`): (T, V), float32.
            moves (`Tensor`): (N, T, V), float32; the derivative of the logits after each coefficient.
            targets (`Tensor`): (T,), the tokens that came.

        Source: the gradient and Gauss-Newton matrix of softmax cross-entropy, sum_t (p - y) . J_i and
        sum_t p . (J_i * J_j) - (p . J_i)(p . J_j), with J_i = d logits / d c_i.
        """
        count = len(moves)
        logs = logits.log_softmax(-1)
        chances = logs.exp()
        chosen = targets.unsqueeze(1)
        self.values[0] += len(targets)
        self.values[1] -= float(logs.gather(1, chosen).cpu().double().sum())  # not every device has float64
        flat = moves.reshape(count, -1)
        expected, seconds = [], []
        for move in moves:
            weighted = chances * move
            expected.append(weighted.sum(-1))
            seconds.append(flat @ weighted.reshape(-1))
        means = torch.stack(expected).cpu().double()  # (N, T)
        taken = torch.stack([move.gather(1, chosen).squeeze(1) for move in moves]).cpu().double()
        self.values[2 : 2 + count] += (means - taken).sum(1)
        self.values[2 + count :] += (torch.stack(seconds).cpu().double() - means @ means.T).reshape(-1)

    def quadratic(self) -> Quadratic:
        """The mean over tokens."""
        tokens = float(self.values[0])
        count = round((len(self.values) - 2 + 0.25) ** 0.5 - 0.5)
        curvature = self.values[2 + count :].reshape(count, count) / tokens
        return Quadratic(
            float(self.values[1]) / tokens, self.values[2 : 2 + count] / tokens, (curvature + curvature.T) / 2
        )
