"""The most forward passes that a search makes, from the budgets of its strategies."""

from dem_hub.search.solve.line_search import ROUNDS
from dem_hub.search.strategies import STRATEGIES, choose


def most_forward(method: str, count: int, max_forward: float | None = None) -> float:
    """Return the most forward passes over the search data: one more than the budget that the search says at its start.

    The one is for a baseline that is better than what was found, and that was not scored yet. Usually a search takes
    fewer: with three vectors gauss_newton needs four passes for its table, four for slopes and one for a check.

    Args:
        method (`str`): The method, or `auto`.
        count (`int`): Number of vectors.
        max_forward (`float`, *optional*): The caller's limit.

    Raises:
        [`~dem_hub.errors.ConfigError`]: If there is no such method.
    """
    budget = max_forward
    if budget is None:
        strategy, _ = choose(method, count)
        budget = STRATEGIES[strategy.name]().usual_budget(count)
    return budget + 1


def most_forward_held_out(count: int) -> int:
    """Return the most forward passes over the held-out data: what was found, and the baselines.

    These are the base, each vector alone, and for two vectors or more equal shares and the common coefficient that is
    best: all of each, the search's guess, and the steps of a line search.
    """
    if count == 1:
        return 3
    return 1 + 1 + count + 1 + 2 + ROUNDS
