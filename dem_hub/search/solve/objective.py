"""What is minimised: one number from the losses of several distributions.

Every choice is the same function of losses, `max` or a weighted sum of `weight * loss`, so that a search can be solved again for
another objective from what it has measured already.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

import torch
from torch import Tensor

from dem_hub.defaults import OBJECTIVE, ObjectiveKind
from dem_hub.errors import ConfigError


@dataclass(frozen=True)
class Objective:
    """How losses become one number.

    `mean`: the weighted mean over distributions, with equal weights the mean log-perplexity; `worst`: the largest weighted loss;
    `improvement`: the weighted mean of loss / loss of the base, which counts what is gained in proportion. `weights` are by distribution, 1
    where none is given; a weight of 0 leaves a distribution out.

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
        """Refuse kinds that do not exist, and weights that are negative."""
        if self.kind not in get_args(ObjectiveKind):
            raise ConfigError(f"objective is {self.kind!r}; it must be one of {', '.join(get_args(ObjectiveKind))}.")
        wrong = {name: weight for name, weight in self.weights.items() if not (math.isfinite(weight) and weight >= 0)}
        if wrong:
            raise ConfigError(f"weights are {wrong}; they must be finite and not negative.")

    def factors(self, names: Sequence[str], base_losses: Mapping[str, float] | None) -> list[float]:
        """What each distribution's loss is multiplied by before the sum, or the maximum, is taken.

        Raises:
            `ConfigError`: a weight for a distribution that there is not, or no weight above 0.
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
        if self.kind == "improvement":
            assert base_losses is not None
            return [weight / sum(weights) / base_losses[name] for name, weight in zip(names, weights, strict=True)]
        return [weight / sum(weights) for weight in weights]

    def value(self, losses: Mapping[str, float], base_losses: Mapping[str, float] | None = None) -> float:
        """The number itself; lower is better."""
        factors = self.factors(list(losses), base_losses)
        terms = [factor * loss for factor, loss in zip(factors, losses.values(), strict=True)]
        return max(terms) if self.kind == "worst" else sum(terms)

    def slope(self, losses: Mapping[str, float], base_losses: Mapping[str, float] | None = None) -> Tensor:
        """The derivative of the value after each loss, (K,) in float64; of `worst`, after the largest alone."""
        factors = torch.tensor(self.factors(list(losses), base_losses), dtype=torch.float64)
        if self.kind != "worst":
            return factors
        terms = factors * torch.tensor(list(losses.values()), dtype=torch.float64)
        return torch.zeros_like(factors).index_put((terms.argmax(),), factors[terms.argmax()])
