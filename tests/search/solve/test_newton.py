"""Small convex problems, against closed forms and brute force."""

from itertools import product

import pytest
import torch
from torch import Tensor

from dem_hub.search.solve.local_model import LocalModel, Quadratic
from dem_hub.search.solve.newton import best_point, common_point, minimize
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.prior import Prior
from dem_hub.search.solve.region import Region


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def bowl(optimum: Tensor, matrix: Tensor, loss: float = 1.0) -> Quadratic:
    """The quadratic with this minimum, around the origin."""
    return Quadratic(loss + float(optimum @ matrix @ optimum) / 2, -matrix @ optimum, matrix)


def random_matrix(count: int, seed: int, rank: int | None = None) -> Tensor:
    factor = torch.randn(count, rank or count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return factor @ factor.T / count


def model(*parts: Quadratic) -> LocalModel:
    count = len(parts[0].gradient)
    return LocalModel(
        tuple(f"v{i}" for i in range(count)), (0.0,) * count, {f"d{i}": part for i, part in enumerate(parts)}
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_quadratic_is_solved_exactly(seed: int) -> None:
    optimum = torch.rand(4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = best_point(model(bowl(optimum, random_matrix(4, seed))), Objective(), Region.of([(0, 1.5)] * 4))
    assert found.tolist() == pytest.approx(optimum.tolist(), abs=1e-6)


def by_grid(quadratic: Quadratic, low: float, high: float, max_sum: float = 1e9) -> float:
    axis = torch.linspace(low, high, 81, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis, axis)
    points = points[points.sum(1) <= max_sum + 1e-9]
    values = quadratic.loss + points @ quadratic.gradient + ((points @ quadratic.curvature) * points).sum(1) / 2
    return float(values.min())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("max_sum", [None, 0.6])
def test_bounds_against_brute_force(seed: int, max_sum: float | None) -> None:
    optimum = torch.randn(3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    quadratic = bowl(optimum, random_matrix(3, seed))
    region = Region.of([(0, 1)] * 3, max_sum)
    found = best_point(model(quadratic), Objective(), region)
    assert region.contains(found)
    value = float(quadratic.value(found))
    reference = by_grid(quadratic, 0, 1, max_sum or 1e9)
    assert value <= reference + 1e-9
    assert value >= reference - 2e-2  # the grid's own coarseness


def test_two_vectors_that_are_the_same_share() -> None:
    matrix = tensor(1, 1, 1, 1).reshape(2, 2)
    quadratic = Quadratic(1.0, tensor(-1, -1), matrix)  # lowest wherever the two sum to 1
    found = best_point(model(quadratic), Objective(), Region.of([(0, 1.5)] * 2), prior=Prior(common_strength=1e-3))
    assert found.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)


@pytest.mark.parametrize(("low", "harmful"), [(0.0, 0.0), (-1.0, -0.4)])
def test_a_harmful_vector(low: float, harmful: float) -> None:
    found = best_point(model(bowl(tensor(0.7, -0.4), torch.eye(2).double())), Objective(), Region.of([(low, 1)] * 2))
    assert found.tolist() == pytest.approx([0.7, harmful], abs=1e-7)


def test_worst_case_balances() -> None:
    first, second = bowl(tensor(0, 0), torch.eye(2).double()), bowl(tensor(1, 0), torch.eye(2).double())
    found = best_point(model(first, second), Objective("worst"), Region.of([(-2, 2)] * 2))
    assert found.tolist() == pytest.approx([0.5, 0.0], abs=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_worst_case_against_brute_force(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    parts = [
        bowl(torch.rand(2, generator=generator, dtype=torch.float64), random_matrix(2, seed + 10 * k), 1 + 0.1 * k)
        for k in range(3)
    ]
    found = best_point(model(*parts), Objective("worst"), Region.of([(0, 1)] * 2))
    axis = torch.linspace(0, 1, 201, dtype=torch.float64)
    reference = min(
        max(float(part.value(tensor(x, y))) for part in parts) for x, y in product(axis.tolist()[::4], repeat=2)
    )
    assert max(float(part.value(found)) for part in parts) <= reference + 1e-5


def test_weights_choose_whom_to_serve() -> None:
    both = model(bowl(tensor(0.2), tensor(1).reshape(1, 1)), bowl(tensor(1.0), tensor(1).reshape(1, 1)))
    region = Region.of([(0, 1.5)])
    answers = {w: float(best_point(both, Objective("mean", {"d1": w}), region)[0]) for w in (0.0, 1.0, 3.0)}
    assert answers == pytest.approx({0.0: 0.2, 1.0: 0.6, 3.0: 0.8}, abs=1e-9)


def test_common_point_is_the_best_of_the_diagonal() -> None:
    quadratic = bowl(tensor(0.2, 0.9, 0.4), random_matrix(3, 1))
    found = common_point(model(quadratic), Objective(), Region.of([(0, 1.5)] * 3))
    assert len(set(found.tolist())) == 1
    levels = torch.linspace(0, 1.5, 1501, dtype=torch.float64)
    assert float(quadratic.value(found)) == pytest.approx(
        min(float(quadratic.value(torch.ones(3).double() * level)) for level in levels), abs=1e-6
    )


def test_a_local_model_knows_its_point() -> None:
    """The same quadratic, written around another point, has the same minimum."""
    optimum, matrix, away = tensor(0.3, 0.6), random_matrix(2, 3), tensor(1.0, -0.5)
    origin = bowl(optimum, matrix)
    there = Quadratic(float(origin.value(away)), origin.slope(away), matrix)
    moved = LocalModel(("v0", "v1"), tuple(away.tolist()), {"d0": there})
    assert best_point(moved, Objective(), Region.of([(0, 1)] * 2)).tolist() == pytest.approx(optimum.tolist(), abs=1e-6)
    assert moved.losses((0.3, 0.6))["d0"] == pytest.approx(1.0)
    assert LocalModel.from_dict(moved.to_dict()).losses((0.1, 0.2)) == moved.losses((0.1, 0.2))


def test_a_pull_towards_a_point_damps() -> None:
    quadratic = bowl(tensor(1.0), tensor(2).reshape(1, 1))
    found = best_point(model(quadratic), Objective(), Region.of([(0, 2)]), prior=Prior(0.0, tensor(0.0), tensor(2.0)))
    assert float(found) == pytest.approx(0.5)


def test_a_function_that_is_no_quadratic() -> None:
    def function(point: Tensor) -> tuple[float, Tensor, Tensor]:
        return float(point.exp().sum() - 2 * point.sum()), point.exp() - 2, torch.diag(point.exp())

    assert minimize(function, tensor(-1, 3), Region.of([(-5, 5)] * 2)).tolist() == pytest.approx(
        [torch.tensor(2.0).log().item()] * 2, abs=1e-6
    )
