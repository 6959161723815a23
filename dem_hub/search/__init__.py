"""The search for coefficients: data and vectors in, a recipe out.

A search goes through these steps:

1. The arguments are checked before anything is loaded (`arguments.py`), and the model is loaded (`loading.py`).
2. The data of each distribution is cut into windows of tokens, and split into search data and held-out data
   (`dem_hub/evaluation/`).
3. A strategy scores points (`strategies/`, one file each, behind the protocol in `problem.py`). Each new point is
   one forward pass over the search data: the model in memory is merged again in place, its losses are measured, and
   they are kept in a cache (`measure/`).
4. From what it has measured, a strategy makes a local model: a quadratic for each distribution. Its minimum is
   found by algebra (`solve/`), and is the next point.
5. The best trial is compared with baselines on the held-out data; a baseline that is clearly better replaces it
   (`held_out.py`).
6. On request, coefficients for groups of tensors are searched from there, and kept if held-out data says so
   (`per_group.py`).
7. On request, RegMean vectors are made from what the layers read in the passes of step 3, compared with the answer on
   the held-out data, and kept if they are better (`regmean.py`).

`search.py` calls these in turn. `result.py` is what the user gets, and what the next search can start from
(`resumption.py`).
"""

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
