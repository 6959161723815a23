"""A mixer of the fine-tunes that count, with the search that mixed them, and one of a recipe alone."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dem_hub import DEMModel, SearchResult, search_coefficients
from dem_hub.mixer.mixer import Mixer
from dem_hub.mixer.opening import Measuring, open_mixer
from tests.support.counting_models import Counters


@pytest.fixture(scope="session")
def result(counters: Counters) -> SearchResult:
    """Return what a search of the counters finds."""
    return search_coefficients(counters.base, list(counters.vectors.values()), counters.data, held_out=0)


@pytest.fixture(scope="session")
def found(result: SearchResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the search, which has the base's tokenizer."""
    folder = tmp_path_factory.mktemp("mixer") / "found"
    result.save_pretrained(folder)
    return folder


@pytest.fixture
def open_found(found: Path, counters: Counters, tmp_path: Path) -> Callable[..., Mixer]:
    """Return a function that opens the mixer on the search, with the data of all distributions or of those named."""

    def open_found(*names: str) -> Mixer:
        datasets = {name: counters.data[name] for name in names or counters.data}
        return open_mixer(str(found), measuring=Measuring(datasets), output=tmp_path / "mixtures", dtype="float32")

    return open_found


@pytest.fixture
def mixer(open_found: Callable[..., Mixer]) -> Mixer:
    """Return the mixer on the search."""
    return open_found()


@pytest.fixture
def plain(counters: Counters, tmp_path: Path) -> Mixer:
    """Return the mixer on a recipe that no search found, without data."""
    coefficients = {counters.vectors["up"]: 0.25, counters.vectors["down"]: 0.5}
    DEMModel.from_pretrained(counters.base, vectors=coefficients).dem.save_pretrained(tmp_path / "recipe")
    return open_mixer(str(tmp_path / "recipe"), output=tmp_path / "mixtures")
