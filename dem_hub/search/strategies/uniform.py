"""The other reference: one coefficient for all vectors, looked for along a line."""

from dataclasses import dataclass

from dem_hub.search.problem import Problem
from dem_hub.search.solve.region import common_bounds


@dataclass(frozen=True)
class Uniform:
    """`max_forward` equal steps (11 points if the caller does not say) between the bounds that all coefficients share."""

    name: str = "uniform"

    def search(self, problem: Problem) -> None:
        """Score the points."""
        from huggingface_hub.utils import tqdm

        count = max(2, int(problem.budget(11)))
        low, high = common_bounds(problem.region)
        for number in tqdm(range(count), desc="One coefficient", unit="point", delay=1):
            problem.evaluate([low + (high - low) * number / (count - 1)] * problem.count)
