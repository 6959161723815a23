"""A local model of a search: each distribution's loss as a quadratic function of the coefficients, around one point.

A search leaves these few numbers behind. With them, any objective over the distributions, any bounds, a vector less
or a distribution less is a small convex problem that takes no forward pass. N is the number of coefficients in all
shapes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dem_hub.errors import ConfigError


@dataclass(frozen=True)
class Quadratic:
    """One loss: loss(point + step) = loss + gradient . step + step . curvature . step / 2.

    `loss` is in nats a token; `gradient`, (N,), and `curvature`, (N, N), are float64.
    """

    loss: float
    gradient: Tensor
    curvature: Tensor

    def value(self, step: Tensor) -> Tensor:
        """Return the loss a step, (N,), away from the point."""
        return self.loss + self.gradient @ step + step @ self.curvature @ step / 2

    def slope(self, step: Tensor) -> Tensor:
        """Return the gradient, (N,), a step away from the point."""
        return self.gradient + self.curvature @ step


@dataclass(frozen=True)
class LocalModel:
    """The losses of all distributions around `point`.

    `names` are those of the vectors, in the order of the point's coefficients.
    """

    names: tuple[str, ...]
    point: tuple[float, ...]
    parts: Mapping[str, Quadratic]

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit."""
        count = len(self.names)
        for name, part in self.parts.items():
            sizes = (len(self.point), tuple(part.gradient.shape), tuple(part.curvature.shape))
            if sizes != (count, (count,), (count, count)):
                raise ConfigError(f"the model of '{name}' has the sizes {sizes} for {count} coefficients.")

    def losses(self, point: Sequence[float]) -> dict[str, float]:
        """Return the losses that the model expects at another point, by distribution."""
        step = torch.tensor(point, dtype=torch.float64, device="cpu") - torch.tensor(
            self.point, dtype=torch.float64, device="cpu"
        )
        return {name: float(part.value(step)) for name, part in self.parts.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-serialisable data."""
        parts = {
            name: {"loss": part.loss, "gradient": part.gradient.tolist(), "curvature": part.curvature.tolist()}
            for name, part in self.parts.items()
        }
        return {"names": list(self.names), "point": list(self.point), "parts": parts}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "LocalModel":
        """Read what `to_dict` returned."""
        parts = {}
        for name, part in data["parts"].items():
            gradient = torch.tensor(part["gradient"], dtype=torch.float64, device="cpu")
            curvature = torch.tensor(part["curvature"], dtype=torch.float64, device="cpu")
            parts[name] = Quadratic(part["loss"], gradient, curvature)
        return cls(tuple(data["names"]), tuple(data["point"]), parts)
