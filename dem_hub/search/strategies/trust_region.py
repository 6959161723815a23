"""A quadratic through the points scored so far, trusted near the best of them: for any smooth score, with no derivative.

Far points are fitted loosely and near ones closely, and where points are too few to tell, the smallest curvature is assumed; so each
new point, at the model's minimum, both improves the model and is a candidate.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from dem_hub.search.problem import Problem
from dem_hub.search.solve.local_model import LocalModel, Quadratic
from dem_hub.search.solve.newton import best_point
from dem_hub.search.solve.prior import Prior
from dem_hub.search.solve.region import Region

_RADIUS = 0.3  # of a coefficient, around the best point, at first
_SMALLEST = 0.01
_CROSS = 0.3  # how readily a mixed curvature is assumed, against a plain one


def usual_budget(count: int) -> int:
    """25 for up to four vectors; for more, enough to know all curvatures and ten to use them."""
    return 25 if count <= 4 else (count + 1) * (count + 2) // 2 + 10


@dataclass(frozen=True)
class TrustRegion:
    """See the module.

    Source: a weighted form of Powell's minimum-norm quadratic models (NEWUOA, 2006); a quadratic surrogate of merged models' scores is
    used by MAP (Li et al., 2024).
    """

    name: str = "quadratic"

    def search(self, problem: Problem) -> None:
        """Corners, the diagonal, a cross around the best of these, then the model's minima."""
        budget, count = problem.budget(usual_budget(problem.count)), problem.count
        for point in [problem.start] if problem.start else _corners(count):
            _try(problem, torch.tensor(point, dtype=torch.float64), budget)
        center = torch.tensor(problem.start, dtype=torch.float64) if problem.start else _best_on_diagonal(problem)
        _try(problem, center, budget)
        for place in range(count):
            for sign in (1.0, -1.0):
                step = torch.zeros(count, dtype=torch.float64)
                step[place] = sign * _RADIUS
                _try(problem, center + step, budget)
        radius = _RADIUS
        while problem.num_forward + 1 <= budget + 1e-9 and radius > _SMALLEST:
            best = problem.best
            center = torch.tensor(best.coefficients, dtype=torch.float64)
            around = fit(problem, center, radius)
            low, high = (center - radius).maximum(problem.region.low), (center + radius).minimum(problem.region.high)
            new = best_point(
                around, problem.objective, Region(low, high, problem.region.max_sum), problem.base_losses, Prior()
            )
            if float((new - center).abs().max()) < _SMALLEST / 4:
                radius /= 3
                new = _unexplored(problem, center, radius)
            if not _try(problem, new, budget):
                radius /= 2
            elif problem.best is best:
                radius = max(radius / 1.5, _SMALLEST)
            problem.model = fit(problem, torch.tensor(problem.best.coefficients, dtype=torch.float64), radius)


def fit(problem: Problem, center: Tensor, radius: float) -> LocalModel:
    """Quadratics around a point, one for each distribution, by weighted least squares of smallest norm."""
    trials = [trial for trial in problem.trials if torch.isfinite(torch.tensor(trial.value))]
    steps = torch.tensor([trial.coefficients for trial in trials], dtype=torch.float64) - center
    distance = steps.norm(dim=1) / radius
    weights = 1 / (1 + distance**3)
    scale = radius  # columns of one size
    pairs = list(combinations(range(problem.count), 2))
    columns = [torch.ones(len(steps), dtype=torch.float64)]
    columns += [steps[:, i] / scale for i in range(problem.count)]
    columns += [(steps[:, i] / scale) ** 2 / 2 for i in range(problem.count)]
    columns += [_CROSS * steps[:, i] * steps[:, j] / scale**2 for i, j in pairs]
    matrix = torch.stack(columns, dim=1) * weights.unsqueeze(1)
    parts = {}
    for name in trials[0].losses:
        losses = torch.tensor([trial.losses[name] for trial in trials], dtype=torch.float64) * weights
        solution = torch.linalg.lstsq(matrix, losses, rcond=1e-10, driver="gelsd").solution
        parts[name] = _as_quadratic(solution, problem.count, pairs, scale)
    return LocalModel(problem.measure.names, tuple(center.tolist()), parts)


def _as_quadratic(solution: Tensor, count: int, pairs: Sequence[tuple[int, int]], scale: float) -> Quadratic:
    """From the fitted columns; made convex, as the losses are where it matters."""
    curvature = torch.diag(solution[1 + count : 1 + 2 * count])
    for (i, j), value in zip(pairs, solution[1 + 2 * count :].tolist(), strict=True):
        curvature[i, j] = curvature[j, i] = _CROSS * value
    values, vectors = torch.linalg.eigh(curvature / scale**2)
    return Quadratic(float(solution[0]), solution[1 : 1 + count] / scale, (vectors * values.clamp(min=0)) @ vectors.T)


def _corners(count: int) -> list[tuple[float, ...]]:
    """The base, each vector alone, and all of them by halves and in full."""
    singles = [tuple(float(i == j) for j in range(count)) for i in range(count)]
    return list(dict.fromkeys([(0.0,) * count, *singles, (0.5,) * count, (1.0,) * count]))


def _best_on_diagonal(problem: Problem) -> Tensor:
    """The minimum of a parabola through nothing, half of everything, and everything."""
    values = [problem.evaluate(problem.inside((level,) * problem.count)).value for level in (0.0, 0.5, 1.0)]
    bend = values[0] - 2 * values[1] + values[2]
    level = (
        0.5 - (values[2] - values[0]) / (4 * bend)
        if bend > 0
        else min((0.0, 0.5, 1.0), key=lambda at: values[round(2 * at)])
    )
    return problem.inside((min(max(level, 0.0), 1.0),) * problem.count)


def _unexplored(problem: Problem, center: Tensor, radius: float) -> Tensor:
    """A point near the centre in the direction that the points so far say least about."""
    steps = torch.tensor([trial.coefficients for trial in problem.trials], dtype=torch.float64) - center
    near = steps[steps.norm(dim=1) <= 4 * radius]
    _, vectors = torch.linalg.eigh(near.T @ near)
    return problem.inside((center + radius * vectors[:, 0]).tolist())


def _try(problem: Problem, point: Tensor, budget: float) -> bool:
    """Score a point of the region if the budget allows it; whether it was a new one."""
    before = len(problem.trials)
    if problem.num_forward + 1 <= budget + 1e-9:
        problem.evaluate(problem.region.clip(point))
    return len(problem.trials) > before
