"""Every strategy: inside its bounds and its budget, better than what anyone would try; and what only one of them promises."""

import importlib.util
import logging
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from dem_hub import DEMModel
from dem_hub.errors import ConfigError, MissingDependencyError
from dem_hub.evaluation.windows import Window
from dem_hub.search import GaussNewton, Gradient, Grid, Optuna, TrustRegion, Uniform
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.loss_evaluator import LossEvaluator
from dem_hub.search.problem import Problem, Strategy
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.region import Region
from dem_hub.search.strategies import STRATEGIES, choose
from dem_hub.search.strategies.optuna_samplers import first_points
from tests.support.counting_models import Counters


class Bowl:
    """A quadratic with a known optimum, as a measure."""

    def __init__(self, optimum: Sequence[float], seed: int = 0) -> None:
        count = len(optimum)
        factor = torch.randn(count, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.optimum, self.matrix = (
            torch.tensor(optimum, dtype=torch.float64),
            factor @ factor.T / count + torch.eye(count) / 4,
        )
        self.names = tuple(f"v{number}" for number in range(count))
        self.question = [f"{optimum} {seed}"]
        self.num_forward = 0.0

    def losses(self, point: Sequence[float]) -> dict[str, float]:
        self.num_forward += 1
        step = torch.tensor(point, dtype=torch.float64) - self.optimum
        return {"score": 1 + float(step @ self.matrix @ step) / 2}


def problem(
    measure: Any, bounds: tuple[float, float] = (0.0, 1.5), max_sum: float | None = None, **options: Any
) -> Problem:
    return Problem(measure, Objective(), Region.of([bounds] * len(measure.names), max_sum), **options)


@pytest.fixture
def likelihoods(counters: Counters) -> Callable[..., LossEvaluator]:
    def make(*names: str) -> LossEvaluator:
        vectors = [counters.vectors[name] for name in names or counters.vectors]
        model = DEMModel.from_pretrained(counters.base, vectors=dict.fromkeys(vectors, 0.0), dtype="float32")
        data = {
            name: [Window(tuple(row), tuple(row), i) for i, row in enumerate(rows)]
            for name, rows in counters.data.items()
        }
        return LossEvaluator(model, data, MeasurementCache())

    return make


LIGHT: list[Strategy] = [
    GaussNewton(),
    Gradient(),
    TrustRegion(),
    Grid((0.1, 0.25, 0.4)),
    Uniform(),
    Optuna("tpe"),
    Optuna("random"),
]


@pytest.mark.parametrize("strategy", LIGHT, ids=lambda strategy: f"{strategy.name}{getattr(strategy, 'sampler', '')}")
def test_conformance(strategy: Strategy, likelihoods: Callable[..., LossEvaluator]) -> None:
    """Bounds, budget, and never worse than the points it shares with anyone."""
    measured = likelihoods()
    bounds = (0.1, 0.45)
    found = problem(measured, bounds, max_forward=20)
    strategy.search(found)
    assert all(bounds[0] - 1e-9 <= value <= bounds[1] + 1e-9 for value in found.best.coefficients)
    assert found.num_forward <= 20 + 1
    assert found.best.value == pytest.approx(sum(found.best.losses.values()) / 3)
    assert found.best.losses == measured.losses(found.best.coefficients)


@pytest.mark.parametrize("name", STRATEGIES)
def test_names(name: str) -> None:
    assert STRATEGIES[name]().name == name
    assert choose(name, 3)[0] == STRATEGIES[name]()


@pytest.mark.parametrize(
    ("count", "score", "name"),
    [
        (1, False, "gauss_newton"),
        (16, False, "gauss_newton"),
        (17, False, "gradient"),
        (8, True, "quadratic"),
        (9, True, "optuna"),
    ],
)
def test_auto_says_what_it_chose(count: int, score: bool, name: str) -> None:
    strategy, reason = choose("auto", count, is_score=score)
    assert strategy.name == name
    assert reason.startswith(f"method auto: {name}, for {'a score' if score else 'losses'} with ")


def test_no_such_method() -> None:
    with pytest.raises(
        ConfigError,
        match="method is 'magic'; it must be auto, or one of gauss_newton, gradient, quadratic, optuna, grid, uniform",
    ):
        choose("magic", 3)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("optimum", [(0.4, 0.7), (0.3, 0.9, 0.5), (0.2, 0.6, 1.1, 0.4)], ids=len)
def test_quadratic_solves_a_quadratic(optimum: tuple[float, ...], seed: int) -> None:
    measure = Bowl(optimum, seed)
    found = problem(measure)
    TrustRegion().search(found)
    assert measure.num_forward <= 25
    assert found.best.coefficients == pytest.approx(optimum, abs=1e-2)
    assert found.best.value == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("low", "harmful"), [(0.0, 0.0), (-1.0, -0.3)])
def test_quadratic_with_a_harmful_vector(low: float, harmful: float) -> None:
    measure = Bowl((0.6, -0.3))
    measure.matrix = torch.eye(2, dtype=torch.float64)
    found = problem(measure, (low, 1.5))
    TrustRegion().search(found)
    assert found.best.coefficients == pytest.approx((0.6, harmful), abs=1e-2)


def test_quadratic_of_one_vector_and_with_a_sum() -> None:
    single, bounded = problem(Bowl((0.37,))), problem(Bowl((0.8, 0.8)), max_sum=1.0)
    TrustRegion().search(single)
    TrustRegion().search(bounded)
    assert single.best.coefficients == pytest.approx((0.37,), abs=1e-3)
    assert sum(bounded.best.coefficients) <= 1 + 1e-9


def reference(likelihoods: Callable[..., LossEvaluator]) -> float:
    """The best of a fine search by another road: L-BFGS-B on exact gradients."""
    found = problem(likelihoods(), max_forward=90)
    Gradient().search(found)
    return found.best.value


def test_gauss_newton_beats_a_grid_of_125(likelihoods: Callable[..., LossEvaluator]) -> None:
    quick, slow = problem(likelihoods()), problem(likelihoods())
    model = GaussNewton().search(quick)
    Grid().search(slow)
    assert len(slow.trials) == 125
    assert quick.num_forward <= 12
    assert quick.best.value < slow.best.value
    assert quick.best.value - reference(likelihoods) < 3e-3
    assert model is not None


@pytest.mark.parametrize("names", [("up",), ("up", "down")])
def test_gauss_newton_with_fewer_vectors(likelihoods: Callable[..., LossEvaluator], names: tuple[str, ...]) -> None:
    found, line = problem(likelihoods(*names)), problem(likelihoods(*names))
    GaussNewton().search(found)
    Grid(tuple(number / 10 for number in range(0, 16, 3 if len(names) > 1 else 1))).search(line)
    assert found.num_forward <= 12
    assert found.best.value <= line.best.value + 1e-3


def test_gauss_newton_from_a_known_point(likelihoods: Callable[..., LossEvaluator]) -> None:
    """No table: a step and its check."""
    found = problem(likelihoods(), start=(0.3, 0.3, 0.3), max_forward=5)
    GaussNewton().search(found)
    assert found.num_forward == 5
    assert found.trials[0].coefficients == (0.3, 0.3, 0.3)
    assert found.best.value < found.trials[0].value


@pytest.mark.parametrize(("max_forward", "cost"), [(4, 4), (5, 5), (8, 5), (9, 9)])
def test_gauss_newton_on_a_budget(likelihoods: Callable[..., LossEvaluator], max_forward: int, cost: int) -> None:
    """The table; with one more, the start that its logits give; with a step and its check, that."""
    found = problem(likelihoods(), max_forward=max_forward)
    GaussNewton().search(found)
    assert found.num_forward == cost
    assert (found.best.value < min(trial.value for trial in found.trials[:4])) is (cost > 4)


def test_gauss_newton_on_too_small_a_budget(likelihoods: Callable[..., LossEvaluator]) -> None:
    with pytest.raises(
        ConfigError, match="max_forward is 3, and the cross-loss table of 3 vectors alone takes 4. Allow 12, or use"
    ):
        GaussNewton().search(problem(likelihoods(), max_forward=3))


@pytest.mark.parametrize("kind", ["worst", "improvement"])
def test_gauss_newton_for_other_objectives(likelihoods: Callable[..., LossEvaluator], kind: Any) -> None:
    found, mean = (Problem(likelihoods(), Objective(name), Region.of([(0, 1.5)] * 3)) for name in (kind, "mean"))
    for each in (found, mean):
        GaussNewton().search(each)
    base = likelihoods().losses((0.0, 0.0, 0.0))
    assert found.best.value <= Objective(kind).value(mean.best.losses, base) + 1e-3


def test_gauss_newton_needs_losses() -> None:
    with pytest.raises(ConfigError, match="This method needs the losses of data, and a `score` is one number"):
        GaussNewton().search(problem(Bowl((0.5,))))


def test_a_point_that_is_not_finite_is_out_of_the_running() -> None:
    class Cliff(Bowl):
        def losses(self, point: Sequence[float]) -> dict[str, float]:
            return super().losses(point) if sum(point) < 1.2 else {"score": float("nan")}

    found = problem(Cliff((0.5, 0.5)))
    TrustRegion().search(found)
    assert found.best.coefficients == pytest.approx((0.5, 0.5), abs=1e-2)
    assert any("is not finite" in note and "out of the running" in note for note in found.notes)
    sampled = problem(Cliff((0.5, 0.5)), max_forward=8)
    Optuna("random").search(sampled)
    assert len(sampled.trials) == 8


def test_grid_is_every_point_between_the_bounds() -> None:
    measure = Bowl((0.5, 0.5))
    found = problem(measure, (0.0, 0.6))
    Grid((0.0, 0.5, 1.0)).search(found)
    assert [trial.coefficients for trial in found.trials] == [(0.0, 0.0), (0.0, 0.5), (0.5, 0.0), (0.5, 0.5)]


@pytest.mark.parametrize(
    ("values", "count", "message"),
    [((0.0, 1.0), 17, "2\\^17 points is more than 100000"), ((2.0, 3.0), 2, "No point of a grid")],
)
def test_grids_that_are_refused(values: tuple[float, ...], count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Grid(values).search(problem(Bowl((0.5,) * count)))


def test_uniform_is_a_line() -> None:
    found = problem(Bowl((0.5, 0.5)), (0.0, 1.0))
    Uniform().search(found)
    assert [x for trial in found.trials for x in trial.coefficients] == pytest.approx(
        [x / 10 for x in range(11) for _ in range(2)]
    )


def test_first_points() -> None:
    assert first_points(1) == [(0.0,), (1.0,), (0.5,)]
    assert first_points(2) == [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.5, 0.5), (1.0, 1.0)]


@pytest.mark.parametrize("sampler", ["gp", "tpe", "nsgaii", "cmaes"])
def test_samplers_by_name(sampler: str) -> None:
    runs = []
    for _ in range(2):
        found = problem(Bowl((0.5, 0.3)), max_forward=10, seed=3)
        Optuna(sampler).search(found)
        runs.append(found.trials)
    assert [trial.coefficients for trial in runs[0][:5]] == first_points(2)
    assert runs[0] == runs[1]


def test_a_sampler_of_ones_own() -> None:
    import optuna

    found = problem(Bowl((0.5, 0.3)), max_forward=12)
    Optuna(optuna.samplers.TPESampler(seed=0, n_startup_trials=3)).search(found)
    assert len(found.trials) == 12


@pytest.mark.parametrize(
    ("strategy", "package"), [(Optuna("tpe"), "optuna"), (Optuna("gp"), "scipy"), (Optuna("cmaes"), "cmaes")], ids=str
)
def test_a_package_that_is_missing(strategy: Strategy, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names it and the extra; `None` among the modules is how Python itself marks what cannot be imported."""
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=f"{package}.*pip install 'dem-hub\\[search\\]'"):
        strategy.search(problem(Bowl((0.5, 0.3)), max_forward=2))


def test_gradient_without_scipy(likelihoods: Callable[..., LossEvaluator], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(MissingDependencyError, match="method='gradient' needs SciPy"):
        Gradient().search(problem(likelihoods()))


def test_gradient_takes_no_sum(likelihoods: Callable[..., LossEvaluator]) -> None:
    with pytest.raises(ConfigError, match="method='gradient' takes bounds and no max_sum"):
        Gradient().search(problem(likelihoods(), max_sum=1.0))


def test_no_such_sampler() -> None:
    with pytest.raises(ConfigError, match="sampler is 'magic'; give one of gp, tpe, cmaes, nsgaii, random"):
        Optuna("magic").search(problem(Bowl((0.5,))))


def test_studies_in_one_storage_share_their_trials(tmp_path: Any) -> None:
    """One after the other here; two processes at once in test_processes."""
    first, second = problem(Bowl((0.5, 0.3)), max_forward=8), problem(Bowl((0.5, 0.3)), max_forward=8)
    for each in (first, second):
        Optuna("tpe", storage=str(tmp_path / "journal.log")).search(each)
    assert {trial.coefficients for trial in first.trials} < {trial.coefficients for trial in second.trials}
    assert len(second.trials) == 16


OTHER_QUESTIONS: dict[str, Callable[[], Problem]] = {
    "what is measured": lambda: problem(Bowl((0.5, 0.4)), max_forward=8),
    "the number of vectors": lambda: problem(Bowl((0.5, 0.3, 0.2)), max_forward=8),
    "the bounds": lambda: problem(Bowl((0.5, 0.3)), (0.0, 1.0), max_forward=8),
    "the sum": lambda: problem(Bowl((0.5, 0.3)), max_sum=1.0, max_forward=8),
    "the objective": lambda: replace(problem(Bowl((0.5, 0.3)), max_forward=8), objective=Objective("worst")),
    "the weights": lambda: replace(
        problem(Bowl((0.5, 0.3)), max_forward=8), objective=Objective("mean", {"score": 2.0})
    ),
}


@pytest.mark.parametrize("other", OTHER_QUESTIONS.values(), ids=OTHER_QUESTIONS)
def test_another_question_on_one_storage_is_another_study(other: Callable[[], Problem], tmp_path: Any) -> None:
    """No trial of the first search is taken for one of the second."""
    storage = str(tmp_path / "journal.log")
    Optuna("tpe", storage=storage).search(problem(Bowl((0.5, 0.3)), max_forward=8))
    shared, alone = other(), other()
    Optuna("tpe", storage=storage).search(shared)
    Optuna("tpe", storage=str(tmp_path / "other.log")).search(alone)
    assert len(shared.trials) == len(alone.trials) <= 8
    for trial in shared.trials:
        assert trial.losses == shared.evaluator.losses(trial.coefficients)


def test_the_study_is_told_in_a_line(tmp_path: Any, caplog: pytest.LogCaptureFixture) -> None:
    optuna = Optuna("random", storage=str(tmp_path / "journal.log"), study_name="mine")
    with caplog.at_level(logging.INFO, logger="dem_hub"):
        for _ in range(2):
            optuna.search(problem(Bowl((0.5, 0.3)), max_forward=6))
    first, second = (message for message in caplog.messages if "study" in message)
    assert re.fullmatch("The study 'mine-[0-9a-f]{16}' is new: the storage has no trial of this question.", first)
    assert second.startswith(first.partition(" is ")[0]) and second.endswith(
        "the storage has 6 trials of this question."
    )


def test_a_question_is_the_vectors_the_base_and_the_data(likelihoods: Callable[..., LossEvaluator]) -> None:
    one, two = likelihoods("up"), likelihoods("up", "down")
    assert one.question == likelihoods("up").question
    assert one.question != two.question
    other_data = LossEvaluator(one.model, {"up": [Window((1, 2), (1, 2))]}, MeasurementCache())
    assert one.question != other_data.question
