"""Strategies: ways to look for coefficients, one file each, behind the protocol [`Strategy`]."""

from collections.abc import Callable
from typing import Protocol

from dem_hub.errors import ConfigError
from dem_hub.search.problem import Strategy
from dem_hub.search.strategies.gauss_newton import GaussNewton
from dem_hub.search.strategies.gradient import Gradient
from dem_hub.search.strategies.grid import Grid
from dem_hub.search.strategies.optuna_samplers import Optuna
from dem_hub.search.strategies.trust_region import TrustRegion
from dem_hub.search.strategies.uniform import Uniform


class NamedStrategy(Strategy, Protocol):
    """A strategy that has a name for users. It says what it usually takes before a search begins."""

    def usual_budget(self, count: int) -> int:
        """Return the forward passes over the search data that it makes at most, if the caller sets no limit."""


STRATEGIES: dict[str, Callable[[], NamedStrategy]] = {
    "gauss_newton": GaussNewton,
    "gradient": Gradient,
    "quadratic": TrustRegion,
    "optuna": Optuna,
    "grid": Grid,
    "uniform": Uniform,
}

# Coefficients up to which `auto` takes gauss_newton for losses. A step of it takes a forward pass for each
# coefficient; one of `gradient` takes three, for any number, but needs more steps. Chosen by that count, not
# measured.
_MANY = 16

# Coefficients up to which `auto` takes quadratic for a score. With 8 a quadratic has 45 numbers, each of which
# takes a trial. Chosen by hand, not measured.
_FEW = 8


def choose(method: str | Strategy, count: int, *, is_score: bool = False) -> tuple[Strategy, str]:
    """Return the strategy of a method, and the reason if `auto` chose it.

    Args:
        method (`str` or [`Strategy`]): A name, `auto`, or a strategy itself.
        count (`int`): Number of coefficients.
        is_score (`bool`): Whether there is a caller's score in place of losses.

    Returns:
        `tuple[Strategy, str]`: The strategy, and a sentence for the user. The sentence is empty unless the method
        is `auto`.

    Raises:
        `ConfigError`: There is no such method.

    Example:

    ```python
    >>> from dem_hub.search.strategies import choose
    >>> [choose("auto", count)[0].name for count in (4, 40)]
    ['gauss_newton', 'gradient']
    >>> [choose("auto", count, is_score=True)[0].name for count in (4, 40)]
    ['quadratic', 'optuna']

    ```
    """
    if not isinstance(method, str):
        return method, ""
    if method == "auto":
        return _choose_automatically(count, is_score=is_score)
    if method not in STRATEGIES:
        raise ConfigError(f"method is '{method}'; it must be auto, or one of {', '.join(STRATEGIES)}.")
    return STRATEGIES[method](), ""


def _choose_automatically(count: int, *, is_score: bool) -> tuple[Strategy, str]:
    if is_score:
        return _choose_by_count("a score", count, _FEW, "quadratic", "optuna")
    return _choose_by_count("losses", count, _MANY, "gauss_newton", "gradient")


def _choose_by_count(measured: str, count: int, limit: int, up_to: str, beyond: str) -> tuple[Strategy, str]:
    """Return one strategy for up to `limit` coefficients and another beyond, and the reason."""
    if count <= limit:
        return STRATEGIES[up_to](), f"method auto: {up_to}, for {measured} with at most {limit} coefficients."
    return STRATEGIES[beyond](), f"method auto: {beyond}, for {measured} with more than {limit} coefficients."
