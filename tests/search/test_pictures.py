"""The pictures of real searches show the numbers of their results: they are read back from the axes."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dem_hub import SearchResult, search_coefficients
from dem_hub.errors import CoefficientError, ConfigError
from dem_hub.search.front import front
from dem_hub.search.held_out import INDEPENDENT
from dem_hub.search.landscape import Landscape
from dem_hub.search.pictures import picture_kinds
from dem_hub.search.prediction import Prediction
from dem_hub.search.regmean import RegMeanOutcome
from tests.support.counting_models import Counters


def rows(axes: Any) -> dict[str, Any]:
    """Return the dots of a panel by the label of their row."""
    labels = [text.get_text() for text in axes.get_yticklabels()]
    return dict(zip(labels, axes.containers, strict=True))


def dot(bar: Any) -> float:
    return float(bar.lines[0].get_xdata()[0])


def half(bar: Any) -> float:
    """Return half of the length of an interval."""
    (ends,) = bar.lines[2][0].get_segments()
    return float(ends[1, 0] - ends[0, 0]) / 2


def test_losses(result: SearchResult) -> None:
    assert result.acceptance is not None
    picture = result.plot()
    panels = {axes.get_title(): axes for axes in picture.axes}
    assert list(panels) == ["mean", *result.best.losses]
    labels = [text.get_text() for text in picture.axes[0].get_yticklabels()]
    assert labels == ["base", "up alone", "down alone", "threes alone", "1/N", "best common coefficient", "DEM"]
    contenders = dict(result.acceptance.contenders)
    found = contenders.pop("found")
    drawn = [*contenders.values(), found]  # the answer comes last
    for name, axes in panels.items():
        for one, bar in zip(drawn, axes.containers, strict=True):
            loss, error = (one.value, one.error) if name == "mean" else (one.losses[name], one.errors[name])
            assert dot(bar) == loss
            if one is not found:
                assert half(bar) == pytest.approx(result.acceptance.errors * error)
    assert "standard errors" in picture._supxlabel.get_text()


def test_losses_without_held_out_data(result: SearchResult) -> None:
    picture = replace(result, acceptance=None).plot("losses")
    known = {trial.coefficients: trial for trial in result.trials}
    drawn = rows(picture.axes[0])
    assert dot(drawn["DEM"]) == result.best.value
    assert dot(drawn["base"]) == known[0.0, 0.0, 0.0].value
    assert dot(rows(picture.axes[0])["up alone"]) == known[1.0, 0.0, 0.0].value


def test_regmean_is_a_row(result: SearchResult) -> None:
    acceptance = result.acceptance
    assert acceptance is not None
    base = acceptance.contenders["base"]
    other = replace(acceptance, chosen="regmean", contenders={"found": acceptance.contenders["found"], "regmean": base})
    outcome = RegMeanOutcome({}, result.config, other, 1.0)
    drawn = rows(replace(result, regmean=outcome).plot().axes[0])
    assert dot(drawn["RegMean"]) == base.value


def test_coefficients(result: SearchResult) -> None:
    """Intervals against a formula in numpy: the curvature of the mean, and the tokens that count as independent."""
    assert result.model is not None
    plain = replace(result, acceptance=None)
    drawn = rows(plain.plot("coefficients").axes[0])
    assert [dot(bar) for bar in drawn.values()] == list(result.best.coefficients)
    free = [place for place, value in enumerate(result.best.coefficients) if 1e-6 < value < 1.5 - 1e-6]
    curvatures = [part.curvature.numpy()[np.ix_(free, free)] for part in result.model.parts.values()]
    tokens = list(result.tokens.values())
    inverse = np.linalg.inv(sum(curvatures) / 3)
    scatter = sum(matrix / 9 * INDEPENDENT / count for matrix, count in zip(curvatures, tokens, strict=True))
    errors = np.sqrt(np.diag(inverse @ scatter @ inverse))
    bars = list(drawn.values())
    for place, error in zip(free, errors, strict=True):
        value = result.best.coefficients[place]
        (ends,) = bars[place].lines[2][0].get_segments()
        expected = (max(value - 1.96 * error, 0.0), min(value + 1.96 * error, 1.5))
        assert ends[:, 0].tolist() == pytest.approx(expected, abs=1e-6)
    for place in set(range(3)) - set(free):
        assert not bars[place].has_xerr  # a bound holds it


def test_no_intervals_where_nothing_is_known_of_them(result: SearchResult) -> None:
    for other in (
        replace(result, model=None),
        replace(result, objective=replace(result.objective, kind="worst")),
        replace(result, max_sum=sum(result.best.coefficients)),
    ):
        drawn = rows(replace(other, acceptance=None).plot("coefficients").axes[0])
        assert not any(bar.has_xerr for bar in drawn.values())


def test_landscape(result: SearchResult) -> None:
    picture = result.plot("landscape", axes=("threes", "up"))
    field = picture.axes[0]
    assert (field.get_xlabel(), field.get_ylabel()) == ("coefficient of threes", "coefficient of up")
    trials, found = field.lines
    assert list(zip(*trials.get_data(), strict=True)) == [(t.coefficients[2], t.coefficients[0]) for t in result.trials]
    best = result.best.coefficients
    assert (found.get_xdata()[0], found.get_ydata()[0]) == (best[2], best[0])
    prediction = Prediction.of(result)
    assert prediction is not None
    levels = torch.tensor([0.0, 0.5, 1.5], dtype=torch.float64)
    landscape = Landscape.of(prediction, best, (2, 0), levels)
    for row, up in enumerate(levels.tolist()):
        for column, across in enumerate(levels.tolist()):
            expected = prediction.value((up, best[1], across)).loss
            assert float(landscape.values[row, column]) == pytest.approx(expected, abs=1e-12)
    assert landscape.edges[0] == landscape.lowest
    assert landscape.edges[-1] == pytest.approx(landscape.highest)
    assert landscape.edges == sorted(landscape.edges)


def test_front(result: SearchResult) -> None:
    """No point of it is beaten by any of many random mixtures, as the same quadratics see them."""
    prediction = Prediction.of(result)
    assert prediction is not None
    points = front(prediction, "up", "down")
    assert len(points) > 5
    generator = torch.Generator().manual_seed(0)
    for point in (1.5 * torch.rand(200, 3, generator=generator, dtype=torch.float64)).tolist():
        losses = prediction.model.losses(point)
        assert not any(losses["up"] < p.losses[0] - 1e-6 and losses["down"] < p.losses[1] - 1e-6 for p in points)
    axes = result.plot("front", axes=("up", "down")).axes[0]
    drawn = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}
    assert drawn["best mixtures, rough"] == [point.losses for point in points]
    assert drawn["trial, measured"] == [(trial.losses["up"], trial.losses["down"]) for trial in result.trials]
    assert drawn["DEM, measured"] == [(result.best.losses["up"], result.best.losses["down"])]


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_score_keeps_its_name_and_sign(counters: Counters, direction: str) -> None:
    vectors = [counters.vectors[name] for name in ("up", "down")]

    def closeness(model: Any) -> float:
        first, second = model.dem.coefficients.values()
        distance = (first - 0.5) ** 2 + (second - 0.25) ** 2
        return distance if direction == "minimize" else 100 - distance

    found = search_coefficients(counters.base, vectors, score=closeness, direction=direction)
    values = [closeness_at(trial.coefficients, direction) for trial in found.trials]
    (axes,) = found.plot("trials").axes
    so_far, each = axes.lines
    assert each.get_ydata().tolist() == pytest.approx(values)
    assert so_far.get_ydata()[-1] == pytest.approx(max(values) if direction == "maximize" else min(values))
    better = "higher" if direction == "maximize" else "lower"
    assert axes.get_ylabel() == f"closeness ({better} is better)"
    panel = found.plot("losses").axes[0]
    assert panel.get_title() == "closeness"
    assert dot(rows(panel)["base"]) == pytest.approx(closeness_at((0.0, 0.0), direction))
    assert picture_kinds(found) == ("losses", "coefficients", "landscape", "trials")
    bar = found.plot("landscape").axes[1]
    assert bar.get_ylabel() == f"expected closeness ({better} is better)"
    ends = sorted(bar.get_ylim())
    assert ends[0] < closeness_at((1.5, 1.5), direction) + 0.5
    assert (ends[0] > 90) == (direction == "maximize")


def closeness_at(point: tuple[float, ...], direction: str) -> float:
    distance = (point[0] - 0.5) ** 2 + (point[1] - 0.25) ** 2
    return distance if direction == "minimize" else 100 - distance


def test_one_vector_and_one_distribution(search: Callable[..., SearchResult], counters: Counters) -> None:
    found = search("up", data={"up": counters.data["up"]}, max_forward=6)
    assert picture_kinds(found) == ("losses", "coefficients", "trials")
    assert [axes.get_title() for axes in found.plot().axes] == ["up"]
    with pytest.raises(ConfigError, match="A landscape is over two coefficients, and this search has one"):
        found.plot("landscape")
    with pytest.raises(ConfigError, match="A front is of two distributions, and this search has one"):
        found.plot("front")


def test_refusals(result: SearchResult) -> None:
    with pytest.raises(ConfigError, match=r"no picture 'search\.png'; there are losses, coefficients, landscape"):
        result.plot("search.png")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="leaves no quadratics to draw. Search with 'gauss_newton' or 'quadratic'"):
        replace(result, model=None).plot("landscape")
    with pytest.raises(CoefficientError, match="No vector of this search is called 'sideways'"):
        result.plot("landscape", axes=("up", "sideways"))
    with pytest.raises(ConfigError, match="must be two of the distributions, 'up', 'down', 'threes'"):
        result.plot("front", axes=("up", "sideways"))
    with pytest.raises(ConfigError, match="are for 'landscape' and 'front', and the picture is 'losses'"):
        result.plot("losses", axes=("up", "down"))


def test_a_trial_that_is_not_finite_is_left_out(result: SearchResult) -> None:
    lost = replace(result.trials[-1], coefficients=(9.0, 9.0, 9.0), losses=dict.fromkeys(result.best.losses, math.nan))
    more = replace(result, trials=(*result.trials, replace(lost, value=math.inf)))
    assert len(more.plot("trials").axes[0].lines[1].get_ydata()) == len(result.trials)
    assert more.plot("front").axes
