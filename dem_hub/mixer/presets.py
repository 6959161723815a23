"""Coefficients that have a name: those that were found (DEM), equal shares, each vector alone, the best for the worst.

A visitor may have put vectors aside: a preset has 0 for these. Where a search kept quadratics, its own presets are
solved again without them. Otherwise the other coefficients stay as they are.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from dem_hub.merging.coefficients import Coefficient, level
from dem_hub.search.cross_loss import BASE
from dem_hub.search.held_out import DEM, UNIFORM
from dem_hub.search.points import alone
from dem_hub.search.prediction import Prediction

RECIPE = "recipe"
WORST = "best for the worst distribution"


@dataclass(frozen=True)
class Preset:
    """Coefficients with a name: for each vector of the mixer, in order, a number or one for each group of tensors."""

    label: str
    coefficients: tuple[Coefficient, ...]

    @property
    def levels(self) -> tuple[float, ...]:
        """One number for each vector, where a slider stands: the mean over the groups, if there are groups."""
        return tuple(level(value) for value in self.coefficients)


def presets(
    names: Mapping[str, str],
    recipe: Mapping[str, Coefficient],
    prediction: Prediction | None = None,
    aside: frozenset[str] = frozenset(),
) -> list[Preset]:
    """Return the presets: first what was found or what the recipe has, at the end the base.

    Args:
        names (`Mapping[str, str]`): The short name of each vector of the mixer, by its name, in order.
        recipe (`Mapping[str, float]`): The coefficients that the mixer was opened with, by name. A vector that came
            later has none.
        prediction ([`Prediction`], *optional*): What the search knows, if there was one.
        aside (`frozenset[str]`): The names of the vectors that the visitor has put aside.
    """
    used = [name for name in names if name not in aside]
    by_label: dict[str, Mapping[str, Coefficient]] = {}
    if prediction is None:
        by_label[RECIPE] = recipe
    else:
        by_label[DEM] = prediction.best(aside) if aside & recipe.keys() else recipe
        if len(prediction.model.parts) > 1:
            by_label[WORST] = prediction.best(aside, "worst")
    if used:
        by_label[UNIFORM] = dict.fromkeys(used, 1 / len(used))
    for name in used:
        by_label[alone(names[name])] = {name: 1.0}
    by_label[BASE] = {}
    found = []
    for label, values in by_label.items():
        found.append(Preset(label, tuple(0.0 if name in aside else values.get(name, 0.0) for name in names)))
    return found
