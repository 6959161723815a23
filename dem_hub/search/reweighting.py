"""Coefficients for another objective, other bounds or fewer vectors, from the quadratics that a search kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dem_hub.errors import ConfigError
from dem_hub.merging.config import DEMConfig
from dem_hub.merging.short_names import full_names
from dem_hub.search.solve.local_model import LocalModel
from dem_hub.search.solve.newton import best_point
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.region import Region

if TYPE_CHECKING:
    from dem_hub.search.result import SearchResult

# One (lower, upper) pair for all coefficients, or one by vector.
Bounds = tuple[float, float] | Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class Reweighted:
    """Coefficients for another objective, and the losses to expect: calculated from statistics, not measured."""

    coefficients: Mapping[str, float]
    losses: Mapping[str, float]
    value: float
    config: DEMConfig


def solve_again(
    result: "SearchResult",
    objective: str | None,
    weights: Mapping[str, float] | None,
    bounds: Bounds | None,
    max_sum: float | None,
    without: Sequence[str],
) -> Reweighted:
    """Return the best coefficients for another objective; see [`SearchResult.reweight`]."""
    model = result.model
    if model is None:
        raise ConfigError(
            f"method='{result.method}' leaves no statistics to solve again. Search with 'gauss_newton' or 'quadratic'."
        )
    pairs = _bounds_with(result, model, bounds, without)
    chosen = Objective(
        objective or result.objective.kind,  # type: ignore[arg-type]  # it refuses what is no kind
        result.objective.weights if weights is None else weights,
    )
    base_losses = None
    if chosen.kind == "improvement":
        base_losses = _base_losses(result)
    region = Region.of(pairs, result.max_sum if max_sum is None else max_sum)
    point = best_point(model, chosen, region, base_losses).tolist()
    coefficients = dict(zip(model.names, point, strict=True))
    losses = model.losses(point)
    config = result.plain.with_coefficients(coefficients)
    return Reweighted(coefficients, losses, chosen.value(losses, base_losses), config)


def _base_losses(result: "SearchResult") -> dict[str, float]:
    if result.searched_base_losses is None:
        raise ConfigError("The base was not measured in this search, so nothing can be compared with it.")
    return result.searched_base_losses


def _bounds_with(
    result: "SearchResult", model: LocalModel, bounds: Bounds | None, without: Sequence[str]
) -> list[tuple[float, float]]:
    """Return the search's bounds, with other bounds of all vectors or of some, and 0 for those `without`."""
    names = model.names
    changes: dict[str, tuple[float, float]] = {}
    if isinstance(bounds, Mapping):
        full = full_names(bounds, names, "this search")
        changes = {full[name]: pair for name, pair in bounds.items()}
    elif bounds is not None:
        changes = dict.fromkeys(names, bounds)
    changes |= dict.fromkeys(full_names(without, names, "this search").values(), (0.0, 0.0))
    pairs = dict(zip(names, result.bounds, strict=True)) | changes
    return [pairs[name] for name in names]
