"""Finding coefficients: the objective, and a small search of it."""

from dem_hub.search.objective import Likelihood, likelihood
from dem_hub.search.study import SearchResult, Trial, search_coefficients

__all__ = ["Likelihood", "SearchResult", "Trial", "likelihood", "search_coefficients"]
