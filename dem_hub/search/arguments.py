"""What was asked of a search, refused before anything is loaded where it cannot be done; everything wrong in one error."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any, get_args

from dem_hub.defaults import Granularity
from dem_hub.errors import ConfigError, refuse
from dem_hub.hub.references import VectorSource


def check(
    vectors: Sequence[Any],
    data: Mapping[str, Any] | None,
    score: Any,
    direction: str,
    max_forward: float | None,
    held_out: float | Mapping[str, Any],
) -> None:
    """Refuse what needs no loading to be seen."""
    faults = []
    if isinstance(vectors, str | PathLike | VectorSource):
        refuse(
            ConfigError,
            "This search cannot begin.",
            [f"vectors is '{vectors}', one name; give a list of names: ['{vectors}']"],
        )
    if data is not None and not isinstance(data, Mapping):
        shown = repr(data) if isinstance(data, str | PathLike) else type(data).__name__
        refuse(
            ConfigError,
            "This search cannot begin.",
            [f"eval_datasets is {shown}; give data by name: {{'maths': 'maths.jsonl'}}"],
        )
    if not vectors or not (data or score):
        faults.append(f"a search needs vectors and eval_datasets; it was given {len(vectors)} and {len(data or {})}")
    if data and score:
        faults.append("there are eval_datasets and a score; one of them is what is looked for")
    if max_forward is not None and not max_forward >= 1:
        faults.append(f"max_forward is {max_forward}; it must be 1 or more")
    if not isinstance(held_out, Mapping) and not 0 <= held_out < 1:
        faults.append(f"held_out is {held_out}; it must be a share of the documents, from 0 to less than 1")
    if direction not in ("maximize", "minimize"):
        faults.append(f"direction is {direction!r}; it must be 'maximize' or 'minimize'")
    if faults:
        refuse(ConfigError, "This search cannot begin.", faults)


def check_granularity(granularity: str, score: Any, held_out: Any, max_sum: float | None) -> None:
    """Refuse what a search by groups does not do."""
    if granularity not in get_args(Granularity):
        raise ConfigError(f"granularity is {granularity!r}; it must be one of {', '.join(get_args(Granularity))}.")
    faults = ["a score, which has no held-out part"] if score is not None else []
    faults += ["held_out=0, and such coefficients are kept only where held-out data says so"] if held_out == 0 else []
    faults += [f"max_sum={max_sum}, which is of one coefficient a vector; use bounds"] if max_sum is not None else []
    if granularity != "model" and faults:
        refuse(ConfigError, f"granularity='{granularity}' does not go with everything that was given.", faults)


def pairs(bounds: tuple[float, float] | Sequence[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """Bounds as a pair for each vector."""
    given: list[Any] = list(bounds)
    if len(given) == 2 and all(isinstance(value, int | float) for value in given):
        return [(float(given[0]), float(given[1]))] * count
    if len(given) != count or not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in given):
        raise ConfigError(f"bounds are {bounds!r}; give one (lower, upper) pair, or one for each of {count} vectors.")
    return [(float(low), float(high)) for low, high in given]
