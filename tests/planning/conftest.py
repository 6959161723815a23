"""The search of fine-tunes that count, as for the tests of the search."""

from tests.search.conftest import search

__all__ = ["search"]
