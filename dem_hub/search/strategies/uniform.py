"""One coefficient for all vectors, by scores along a line: a reference to compare with."""

from dataclasses import dataclass

from dem_hub.search.points import all_at
from dem_hub.search.problem import Problem
from dem_hub.search.solve.region import common_bounds

# Points along the line by default. Between the usual bounds, 0 and 1.5, they are 0.15 apart.
_POINTS = 11


@dataclass(frozen=True)
class Uniform:
    """Equal steps between the bounds that all coefficients share: `max_forward` points, or 11 if that is not given."""

    name: str = "uniform"

    def usual_budget(self, count: int) -> int:  # noqa: ARG002
        """Return the points by default."""
        return _POINTS

    def search(self, problem: Problem) -> None:
        """Score the points, from the lower bound to the upper one."""
        count = max(2, int(problem.budget(self.usual_budget(problem.count))))
        low, high = common_bounds(problem.region)
        for number in range(count):
            problem.evaluate(all_at(low + (high - low) * number / (count - 1), problem.count))
