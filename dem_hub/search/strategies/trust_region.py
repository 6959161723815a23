"""A quadratic through the points scored so far, trusted near the best of them: for any smooth score, without
derivatives.

Far points are fitted loosely and near ones closely. Where points are too few to tell, the smallest curvature is
assumed. Each new point is the minimum of the quadratic near the best point, so that it is a candidate and improves
the quadratic too.

The constants are chosen by hand. What they lead to is measured: on SmolLM2-135M the loss of `gauss_newton`, for
about twice its forward passes (benchmarks/README.md, `search.py`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from dem_hub.search.points import Point, all_at, each_alone
from dem_hub.search.problem import Problem
from dem_hub.search.solve.local_model import LocalModel, Quadratic
from dem_hub.search.solve.newton import best_point
from dem_hub.search.solve.prior import Prior
from dem_hub.search.solve.region import Region

# Of a coefficient: distance from the best point to which the quadratic is trusted at first.
_RADIUS = 0.3

# Of a coefficient: the search ends when the quadratic is trusted no further than this.
_SMALLEST = 0.01

# Scale of the columns of mixed curvatures. Below 1, the least-squares solution of smallest norm assumes plain
# curvatures more readily.
_CROSS = 0.3

# Radii beyond which the points say little about the directions around the best one.
_NEAR = 4


@dataclass(frozen=True)
class TrustRegion:
    """Minima of local quadratics.

    It uses `max_forward` trials; if that is not given, 25 for up to four vectors, and (N + 1)(N + 2) / 2 + 10 beyond.

    Source: A weighted form of Powell's minimum-norm quadratic models (NEWUOA, 2006). A quadratic surrogate of
    merged models' scores is used by MAP (Li et al., 2024).
    """

    name: str = "quadratic"

    def usual_budget(self, count: int) -> int:
        """Return the trials by default: 25 up to four vectors; beyond, one per number of a quadratic, and ten more."""
        if count <= 4:
            return 25
        return (count + 1) * (count + 2) // 2 + 10

    def search(self, problem: Problem) -> LocalModel | None:
        """Score corners, the diagonal and a cross around the best of these, then the minima of local quadratics.

        Returns:
            [`LocalModel`] or `None`: The quadratics around the best point; `None` where the budget ended before
                they were used.
        """
        budget = problem.budget(self.usual_budget(problem.count))
        self._score_first_points(problem, budget)
        if not problem.can_afford(1, budget):
            return None
        radius = _RADIUS
        model = fit(problem, _best_point(problem), radius)
        while problem.can_afford(1, budget) and radius > _SMALLEST:
            radius = self._step(problem, model, radius, budget)
            model = fit(problem, _best_point(problem), radius)
        return model

    def _score_first_points(self, problem: Problem, budget: float) -> None:
        """Score what the first quadratic is fitted to."""
        if problem.start:
            center = torch.tensor(problem.start, dtype=torch.float64, device="cpu")
        else:
            for point in _corners(problem.count):
                _try(problem, torch.tensor(point, dtype=torch.float64, device="cpu"), budget)
            center = _best_on_diagonal(problem)
        _try(problem, center, budget)
        for coordinate in range(problem.count):
            for sign in (1.0, -1.0):
                step = torch.zeros(problem.count, dtype=torch.float64, device="cpu")
                step[coordinate] = sign * _RADIUS
                _try(problem, center + step, budget)

    def _step(self, problem: Problem, model: LocalModel, radius: float, budget: float) -> float:
        """Score the minimum of the quadratics within the radius, and return the next radius."""
        best = problem.best
        center = torch.tensor(best.coefficients, dtype=torch.float64, device="cpu")
        low = (center - radius).maximum(problem.region.low)
        high = (center + radius).minimum(problem.region.high)
        trusted = Region(low, high, problem.region.max_sum)
        point = best_point(model, problem.objective, trusted, problem.base_losses, Prior())
        if float((point - center).abs().max()) < _SMALLEST / 4:
            # The quadratics call the best point their minimum. Look closer, in the direction that they know least
            # about.
            radius /= 3
            point = _unexplored(problem, center, radius)
        if not _try(problem, point, budget):
            # The point was scored before.
            return radius / 2
        if problem.best is best:
            return max(radius / 1.5, _SMALLEST)
        return radius


def fit(problem: Problem, center: Tensor, radius: float) -> LocalModel:
    """Return quadratics around a point, one for each distribution, by weighted least squares.

    Where few trials leave several quadratics possible, the one with the smallest numbers is taken.

    Args:
        problem ([`Problem`]): Its finite trials are fitted.
        center (`Tensor`): The point, (N,).
        radius (`float`): Trials within this distance get weights of 1/2 to 1; beyond, weights fall with the third
            power of the distance.
    """
    trials = [trial for trial in problem.trials if math.isfinite(trial.value)]
    steps = torch.tensor([trial.coefficients for trial in trials], dtype=torch.float64, device="cpu") - center
    distance = steps.norm(dim=1) / radius
    weights = 1 / (1 + distance**3)
    pairs = list(combinations(range(problem.count), 2))
    matrix = _columns(steps, pairs, radius) * weights.unsqueeze(1)
    parts = {}
    for name in trials[0].losses:
        losses = torch.tensor([trial.losses[name] for trial in trials], dtype=torch.float64, device="cpu") * weights
        solution = torch.linalg.lstsq(matrix, losses, rcond=1e-10, driver="gelsd").solution
        parts[name] = _as_quadratic(solution, problem.count, pairs, radius)
    return LocalModel(problem.evaluator.names, tuple(center.tolist()), parts)


def _columns(steps: Tensor, pairs: Sequence[tuple[int, int]], scale: float) -> Tensor:
    """Return the columns of the least-squares problem: 1, the steps, half their squares, and products of pairs."""
    count = steps.shape[1]
    columns = [torch.ones(len(steps), dtype=torch.float64, device="cpu")]
    columns += [steps[:, i] / scale for i in range(count)]
    columns += [(steps[:, i] / scale) ** 2 / 2 for i in range(count)]
    columns += [_CROSS * steps[:, i] * steps[:, j] / scale**2 for i, j in pairs]
    return torch.stack(columns, dim=1)


def _as_quadratic(solution: Tensor, count: int, pairs: Sequence[tuple[int, int]], scale: float) -> Quadratic:
    """Return the quadratic of fitted numbers, made convex, as the losses are where it matters."""
    curvature = torch.diag(solution[1 + count : 1 + 2 * count])
    for (i, j), value in zip(pairs, solution[1 + 2 * count :].tolist(), strict=True):
        curvature[i, j] = curvature[j, i] = _CROSS * value
    values, vectors = torch.linalg.eigh(curvature / scale**2)
    return Quadratic(float(solution[0]), solution[1 : 1 + count] / scale, (vectors * values.clamp(min=0)) @ vectors.T)


def _best_point(problem: Problem) -> Tensor:
    return torch.tensor(problem.best.coefficients, dtype=torch.float64, device="cpu")


def _corners(count: int) -> list[Point]:
    """Return the base, each vector alone, and all of them by halves and in full, without repetition."""
    points = [all_at(0.0, count), *each_alone(count), all_at(0.5, count), all_at(1.0, count)]
    return list(dict.fromkeys(points))


def _best_on_diagonal(problem: Problem) -> Tensor:
    """Return the most promising point with one coefficient from 0 to 1 for all vectors.

    It is where the parabola through the objective at 0, 0.5 and 1 is lowest.
    """
    values = [problem.evaluate(problem.inside(all_at(level, problem.count))).value for level in (0.0, 0.5, 1.0)]
    level = min(max(_lowest_level(values), 0.0), 1.0)
    return problem.inside(all_at(level, problem.count))


def _lowest_level(values: Sequence[float]) -> float:
    """Return where a parabola through values at 0, 0.5 and 1 is lowest.

    If it opens downwards, the lowest of the three is returned.
    """
    bend = values[0] - 2 * values[1] + values[2]
    if bend > 0:
        return 0.5 - (values[2] - values[0]) / (4 * bend)
    return values.index(min(values)) / 2


def _unexplored(problem: Problem, center: Tensor, radius: float) -> Tensor:
    """Return a point at a distance from the center, in the direction that the points so far say least about."""
    steps = torch.tensor([trial.coefficients for trial in problem.trials], dtype=torch.float64, device="cpu") - center
    near = steps[steps.norm(dim=1) <= _NEAR * radius]
    _, vectors = torch.linalg.eigh(near.T @ near)
    return problem.inside((center + radius * vectors[:, 0]).tolist())


def _try(problem: Problem, point: Tensor, budget: float) -> bool:
    """Score the nearest point of the region if the budget allows it; return whether that was a new trial."""
    before = len(problem.trials)
    if problem.can_afford(1, budget):
        problem.evaluate(problem.region.clip(point))
    return len(problem.trials) > before
