"""The reference: every point of a grid, as the DEM paper's code has it. The number of points is a power of the number of vectors."""

from dataclasses import dataclass
from itertools import product

from dem_hub.errors import ConfigError
from dem_hub.search.problem import Problem

_MOST = 100_000


@dataclass(frozen=True)
class Grid:
    """All combinations of `values` that lie in the region.

    Source: section 2 of Ram et al., "DEM" (EMNLP 2024), chooses coefficients so.
    """

    values: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    name: str = "grid"

    def search(self, problem: Problem) -> None:
        """Score them, in order, as far as the budget goes."""
        from huggingface_hub.utils import tqdm

        if len(self.values) ** problem.count > _MOST:
            raise ConfigError(
                f"A grid of {len(self.values)}^{problem.count} points is more than {_MOST}. Use method='gauss_newton'."
            )
        points = [problem.inside(point) for point in product(self.values, repeat=problem.count)]
        wanted = [
            point
            for point, given in zip(points, product(self.values, repeat=problem.count), strict=True)
            if point.tolist() == list(given)
        ]
        if not wanted:
            raise ConfigError(f"No point of a grid of {self.values} lies between the bounds {problem.bounds()}.")
        for point in tqdm(wanted[: int(problem.budget(len(wanted)))], desc="Grid", unit="point", delay=1):
            problem.evaluate(point)
