"""Fine-tunes that the tests of the search share."""

from collections.abc import Callable
from typing import Any

import pytest

from dem_hub import SearchResult, search_coefficients
from tests.support.counting_models import STEPS, Counters, make_counters


@pytest.fixture(scope="session")
def counters(tmp_path_factory: pytest.TempPathFactory) -> Counters:
    """Made once."""
    return make_counters(tmp_path_factory.mktemp("counters"))


@pytest.fixture(scope="session")
def gentle(tmp_path_factory: pytest.TempPathFactory) -> Counters:
    """Trained so briefly that the kept logits tell the whole truth."""
    return make_counters(tmp_path_factory.mktemp("gentle"), steps=8, learning_rate=4e-4)


@pytest.fixture(scope="module")
def search(counters: Counters) -> Callable[..., SearchResult]:
    """A search of the counters: for vectors by name, all by default."""

    def search(*names: str, data: Any = None, **options: Any) -> SearchResult:
        vectors = [counters.vectors[name] for name in names or STEPS]
        return search_coefficients(counters.base, vectors, data or counters.data, **options)

    return search
