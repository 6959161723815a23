"""A search of the fine-tunes that count, and its result."""

from collections.abc import Callable
from typing import Any

import pytest

from dem_hub import SearchResult, search_coefficients
from tests.support.counting_models import STEPS, Counters


@pytest.fixture(scope="session")
def search(counters: Counters) -> Callable[..., SearchResult]:
    """A search of the counters: for vectors by name, all by default."""

    def search(*names: str, data: Any = None, **options: Any) -> SearchResult:
        vectors = [counters.vectors[name] for name in names or STEPS]
        return search_coefficients(counters.base, vectors, data or counters.data, **options)

    return search


@pytest.fixture(scope="session")
def result(search: Callable[..., SearchResult]) -> SearchResult:
    """Return what a search with all defaults finds."""
    return search()


@pytest.fixture(scope="session")
def unchecked(search: Callable[..., SearchResult]) -> SearchResult:
    """Return what a search finds that holds nothing out."""
    return search(held_out=0)
