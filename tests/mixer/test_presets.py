"""Coefficients with a name."""

import pytest

from dem_hub import SearchResult
from dem_hub.mixer.mixer import Mixer
from dem_hub.mixer.presets import Preset, presets
from dem_hub.search.prediction import Prediction

NAMES = {"me/up": "up", "me/down": "down", "me/late": "late"}


def by_label(found: list[Preset]) -> dict[str, tuple[object, ...]]:
    return {preset.label: preset.coefficients for preset in found}


def test_of_a_recipe() -> None:
    found = by_label(presets(NAMES, {"me/up": 0.25, "me/down": 0.5}))
    assert found == {
        "recipe": (0.25, 0.5, 0.0),
        "1/N": pytest.approx((1 / 3, 1 / 3, 1 / 3)),
        "up alone": (1.0, 0.0, 0.0),
        "down alone": (0.0, 1.0, 0.0),
        "late alone": (0.0, 0.0, 1.0),
        "base": (0.0, 0.0, 0.0),
    }
    assert next(iter(found)) == "recipe"
    assert list(found)[-1] == "base"


def test_what_is_put_aside_is_in_none_of_them() -> None:
    found = by_label(presets(NAMES, {"me/up": 0.25, "me/down": 0.5}, aside=frozenset({"me/up"})))
    assert found["recipe"] == (0.0, 0.5, 0.0)
    assert found["1/N"] == (0.0, 0.5, 0.5)
    assert "up alone" not in found
    assert list(by_label(presets(NAMES, {}, aside=frozenset(NAMES)))) == ["recipe", "base"]


def test_a_slider_shows_the_mean_of_groups() -> None:
    preset = presets(NAMES, {"me/up": {"attention": 0.2, "rest": 0.4}})[0]
    assert preset.coefficients[0] == {"attention": 0.2, "rest": 0.4}
    assert preset.levels == pytest.approx((0.3, 0.0, 0.0))


def test_of_a_search(mixer: Mixer, result: SearchResult) -> None:
    """The search's own are those of `reweight`, without what is put aside."""
    found = by_label(mixer.presets())
    assert found["DEM"] == tuple(result.coefficients.values())
    assert found["best for the worst distribution"] == tuple(result.reweight("worst").coefficients.values())
    prediction = Prediction.of(result)
    assert prediction is not None
    without = by_label(mixer.presets([1]))
    down = list(result.coefficients)[1]
    assert without["DEM"] == tuple(result.reweight(without=[down]).coefficients.values())
    assert without["best for the worst distribution"][1] == 0


def test_they_are_worked_out_once(mixer: Mixer) -> None:
    """A slider asks for them at each move, and each search for the best takes as long as all the rest."""
    assert mixer.presets([1]) is mixer.presets([1])
    assert mixer.presets([1]) != mixer.presets()
