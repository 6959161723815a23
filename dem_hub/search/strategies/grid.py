"""Every point of a grid, as in the DEM paper: a reference to compare with.

The number of points is a power of the number of vectors.
"""

from dataclasses import dataclass
from itertools import product

from dem_hub.errors import ConfigError
from dem_hub.search.problem import Problem

# Points. A grid beyond this is refused: even at a second for a forward pass it would take more than a day.
_MOST = 100_000


@dataclass(frozen=True)
class Grid:
    """All combinations of `values` that lie in the region.

    Source: Section 2 of Ram et al., "DEM" (EMNLP 2024), chooses coefficients so.
    """

    values: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    name: str = "grid"

    def usual_budget(self, count: int) -> int:
        """Return the points of the whole grid."""
        return int(len(self.values) ** count)

    def search(self, problem: Problem) -> None:
        """Score the points in order, as far as the budget goes.

        Raises:
            `ConfigError`: The grid has more than 100,000 points, or none in the region.
        """
        if self.usual_budget(problem.count) > _MOST:
            raise ConfigError(
                f"A grid of {len(self.values)}^{problem.count} points is more than {_MOST}. Use method='gauss_newton'."
            )
        points = []
        for combination in product(self.values, repeat=problem.count):
            point = problem.inside(combination)
            # A point that the region moves would stand for its neighbor twice.
            if point.tolist() == list(combination):
                points.append(point)
        if not points:
            raise ConfigError(f"No point of a grid of {self.values} lies between the bounds {problem.bounds()}.")
        for point in points[: int(problem.budget(len(points)))]:
            problem.evaluate(point)
