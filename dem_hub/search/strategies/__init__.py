"""Ways to look for coefficients, one file each, behind one small protocol: [`Strategy`]."""

from collections.abc import Callable

from dem_hub.errors import ConfigError
from dem_hub.search.problem import Strategy
from dem_hub.search.strategies.gauss_newton import GaussNewton
from dem_hub.search.strategies.gradient import Gradient
from dem_hub.search.strategies.grid import Grid
from dem_hub.search.strategies.optuna_samplers import Optuna
from dem_hub.search.strategies.trust_region import TrustRegion
from dem_hub.search.strategies.uniform import Uniform

STRATEGIES: dict[str, Callable[[], Strategy]] = {
    "gauss_newton": GaussNewton,
    "gradient": Gradient,
    "quadratic": TrustRegion,
    "optuna": Optuna,
    "grid": Grid,
    "uniform": Uniform,
}

_MANY = 16  # coefficients, from which on a backward pass is cheaper than a forward pass for each
_FEW = 8  # coefficients, up to which a quadratic can be known from points


def choose(method: str | Strategy, count: int, *, is_score: bool = False) -> tuple[Strategy, str]:
    """The strategy, and why `auto` chose it.

    Args:
        method (`str` or [`Strategy`]): a name, `auto`, or a strategy itself.
        count (`int`): the number of vectors.
        is_score (`bool`): whether there is a caller's score in place of losses.

    Raises:
        `ConfigError`: no such method.

    Example:

    ```python
    >>> from dem_hub.search.strategies import choose
    >>> [choose("auto", count, is_score=score)[0].name for count, score in ((4, False), (40, False), (4, True), (40, True))]
    ['gauss_newton', 'gradient', 'quadratic', 'optuna']

    ```
    """
    if not isinstance(method, str):
        return method, ""
    if method != "auto":
        if method not in STRATEGIES:
            raise ConfigError(f"method is '{method}'; it must be auto, or one of {', '.join(STRATEGIES)}.")
        return STRATEGIES[method](), ""
    if is_score:
        name, why = ("quadratic", f"at most {_FEW}") if count <= _FEW else ("optuna", f"more than {_FEW}")
        return STRATEGIES[name](), f"auto: {name}, for a score with {why} coefficients."
    name, why = ("gauss_newton", f"at most {_MANY}") if count <= _MANY else ("gradient", f"more than {_MANY}")
    return STRATEGIES[name](), f"auto: {name}, for losses with {why} coefficients."
