"""The objective of a search: one number from the losses of several distributions.

Every kind is the same function of losses: a sum, or a maximum, of factor * loss. So a search can be solved again for
another objective from what it has measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from dem_hub.defaults import OBJECTIVE, ObjectiveKind
from dem_hub.errors import ConfigError
from dem_hub.files.plain_numbers import plain
from dem_hub.merging.coefficients import is_finite


@dataclass(frozen=True)
class Objective:
    """The rule by which losses become one number, which is minimized.

    Args:
        kind (`str`, *optional*, defaults to `"mean"`): `mean` is the weighted mean over distributions; with equal
            weights, this is the mean log-perplexity. `worst` is the largest weighted loss. `improvement` is the
            weighted mean of loss / loss of the base, so that a gain counts in proportion.
        weights (`Mapping[str, float]`, *optional*): Weights by distribution, 1 where none is given. A weight of 0
            leaves a distribution out.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If there is no such kind, or a weight is negative or not finite.

    Example:

    ```python
    >>> from dem_hub.search.solve.objective import Objective
    >>> losses, base = {"maths": 1.0, "chat": 3.0}, {"maths": 2.0, "chat": 4.0}
    >>> [Objective(kind).value(losses, base) for kind in ("mean", "worst", "improvement")]
    [2.0, 3.0, 0.625]
    >>> Objective("mean", {"chat": 3.0}).value(losses, base)
    2.5

    ```
    """

    kind: ObjectiveKind = OBJECTIVE
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check the kind and the weights."""
        if self.kind not in get_args(ObjectiveKind):
            raise ConfigError(f"objective is {self.kind!r}; it must be one of {', '.join(get_args(ObjectiveKind))}.")
        object.__setattr__(self, "weights", plain(self.weights))
        wrong = {name: weight for name, weight in self.weights.items() if not (is_finite(weight) and weight >= 0)}
        if wrong:
            raise ConfigError(f"weights are {wrong}; they must be finite and not negative.")

    def factors(self, names: Sequence[str], base_losses: Mapping[str, float] | None) -> list[float]:
        """Return what the loss of each distribution is multiplied by before the sum, or the maximum, is taken.

        Args:
            names (`Sequence[str]`): The distributions.
            base_losses (`Mapping[str, float]`, *optional*): The losses of the base, which `improvement` needs.

        Raises:
            [`~dem_hub.errors.ConfigError`]: If a weight names no distribution, or no weight is above 0.
        """
        unknown = sorted(set(self.weights) - set(names))
        if unknown:
            raise ConfigError(
                f"weights name {', '.join(map(repr, unknown))}; the distributions are {', '.join(map(repr, names))}."
            )
        weights = [self.weights.get(name, 1.0) for name in names]
        if not sum(weights) > 0:
            raise ConfigError(f"The weights of {', '.join(map(repr, names))} are all 0. Give one of them more.")
        if self.kind == "worst":
            return weights
        shares = [weight / sum(weights) for weight in weights]
        if self.kind == "mean":
            return shares
        assert base_losses is not None, "'improvement' needs the losses of the base"
        return [share / base_losses[name] for name, share in zip(names, shares, strict=True)]

    def value(self, losses: Mapping[str, float], base_losses: Mapping[str, float] | None = None) -> float:
        """Return the objective of some losses; lower is better."""
        factors = self.factors(list(losses), base_losses)
        terms = [factor * loss for factor, loss in zip(factors, losses.values(), strict=True)]
        if self.kind == "worst":
            return max(terms)
        return sum(terms)

    def slope(self, losses: Mapping[str, float], base_losses: Mapping[str, float] | None = None) -> Tensor:
        """Return the derivative of the objective with respect to each of K losses, (K,) in float64.

        The objective `worst` depends on the largest term alone.
        """
        factors = torch.tensor(self.factors(list(losses), base_losses), dtype=torch.float64, device="cpu")
        if self.kind != "worst":
            return factors
        terms = factors * torch.tensor(list(losses.values()), dtype=torch.float64, device="cpu")
        largest = terms.argmax()
        slope = torch.zeros_like(factors)
        slope[largest] = factors[largest]
        return slope
