"""Finding coefficients: what is measured, the strategies that look, and the study that puts them together."""

from dem_hub.evaluation.likelihood import Likelihood, likelihood
from dem_hub.search.problem import Strategy, Trial
from dem_hub.search.result import SearchResult
from dem_hub.search.search import search_coefficients
from dem_hub.search.solve.objective import Objective
from dem_hub.search.strategies.gauss_newton import GaussNewton
from dem_hub.search.strategies.gradient import Gradient
from dem_hub.search.strategies.grid import Grid
from dem_hub.search.strategies.optuna_samplers import Optuna
from dem_hub.search.strategies.trust_region import TrustRegion
from dem_hub.search.strategies.uniform import Uniform

__all__ = [
    "GaussNewton",
    "Gradient",
    "Grid",
    "Likelihood",
    "Objective",
    "Optuna",
    "SearchResult",
    "Strategy",
    "Trial",
    "TrustRegion",
    "Uniform",
    "likelihood",
    "search_coefficients",
]
