"""Checks of the arguments of a search that need nothing to be loaded.

They run first, so that a mistake is found in a second and not after a model has been downloaded. What is wrong is
told in one error.
"""

from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from os import PathLike
from pathlib import PurePath
from typing import Any, Literal, get_args

import torch

from dem_hub.defaults import Granularity
from dem_hub.errors import CoefficientError, ConfigError, refuse
from dem_hub.evaluation.processes import world_size
from dem_hub.evaluation.rows import check_files
from dem_hub.files.plain_numbers import plain
from dem_hub.files.strict_json import check_whole
from dem_hub.hub.references import VectorSource
from dem_hub.merging.records import canonical_name
from dem_hub.merging.short_names import full_names
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.region import Region

_SUMMARY = "This search cannot begin."


def check(
    vectors: Sequence[Any],
    data: Mapping[str, Any] | None,
    score: Any,
    direction: str,
    max_forward: float | None,
    held_out: float | Mapping[str, Any],
    seed: int,
) -> None:
    """Check the arguments that every search has.

    Raises:
        `ConfigError`: Something is missing, contradicts something else, or is out of range; all of it is listed.
    """
    _check_shapes(vectors, data)
    check_whole(seed, "seed")
    faults = []
    if not vectors or not (data or score):
        faults.append(f"a search needs vectors and eval_datasets; it was given {len(vectors)} and {len(data or {})}")
    if data and score:
        faults.append("there are eval_datasets and a score; give only one of them")
    if max_forward is not None and not max_forward >= 1:
        faults.append(f"max_forward is {max_forward}; it must be 1 or more")
    if not isinstance(held_out, Mapping) and not 0 <= held_out < 1:
        faults.append(f"held_out is {held_out}; it must be a share of the documents, from 0 to less than 1")
    if direction not in ("maximize", "minimize"):
        faults.append(f"direction is {direction!r}; it must be 'maximize' or 'minimize'")
    if faults:
        refuse(ConfigError, _SUMMARY, faults)
    for datasets in (data, held_out):
        if isinstance(datasets, Mapping):
            check_files(datasets)


def _check_shapes(vectors: Sequence[Any], data: Mapping[str, Any] | None) -> None:
    """Check that vectors are a list and data has names; otherwise nothing else can be checked."""
    if isinstance(vectors, str | PathLike | VectorSource):
        refuse(ConfigError, _SUMMARY, [f"vectors is '{vectors}', one name; give a list of names: ['{vectors}']"])
    if data is not None and not isinstance(data, Mapping):
        shown = repr(data) if isinstance(data, str | PathLike) else type(data).__name__
        refuse(ConfigError, _SUMMARY, [f"eval_datasets is {shown}; give data by name: {{'maths': 'maths.jsonl'}}"])


def check_granularity(granularity: str, score: Any, held_out: Any, max_sum: float | None) -> None:
    """Check the arguments of a search for coefficients of groups of tensors.

    Raises:
        `ConfigError`: There is no such granularity, or other arguments do not go with it.
    """
    if granularity not in get_args(Granularity):
        raise ConfigError(f"granularity is {granularity!r}; it must be one of {', '.join(get_args(Granularity))}.")
    if granularity == "model":
        return
    faults = []
    if score is not None:
        faults.append("a score, which has no held-out part")
    if held_out == 0:
        faults.append("held_out=0, and such coefficients are kept only where held-out data says so")
    if max_sum is not None:
        faults.append(f"max_sum={max_sum}, which is of one coefficient a vector; use bounds")
    if faults:
        refuse(ConfigError, f"granularity='{granularity}' does not go with everything that was given.", faults)


def check_model(model_kwargs: Mapping[str, Any]) -> None:
    """Refuse to split a model over processes, among which a search divides the windows instead.

    Raises:
        `ConfigError`: An argument of transformers asks for tensor parallelism or for FSDP2.
    """
    for name in ("distributed_config", "tp_plan", "tp_size"):
        if model_kwargs.get(name) is not None:
            raise ConfigError(
                f"A search takes no {name}={model_kwargs[name]!r}: it gives each process other windows, so each holds "
                "the whole model. Leave it out; device_map='auto' spreads a model over the devices of one process."
            )


def own_distributions(
    vectors: Sequence[str | VectorSource], data: Mapping[str, Any], regmean: Mapping[str, str] | Literal[True]
) -> tuple[str, ...]:
    """Return the own distribution of each vector, in order.

    A vector's own distribution is the one that it is given, or else the one whose name ends like its own, if this is
    so of no other vector and no other distribution.

    Args:
        vectors (`Sequence[str]`): The vectors.
        data (`Mapping[str, Any]`): Data by distribution.
        regmean (`Mapping[str, str]` or `True`): Distributions by vector, which may be called by the end of its name.

    Raises:
        `ConfigError`: A vector's distribution is not known, or there is no such vector or distribution.

    Example:

    ```python
    >>> from dem_hub.search.arguments import own_distributions
    >>> own_distributions(["me/maths", "me/b"], {"maths": [], "chat": []}, {"b": "chat"})
    ('maths', 'chat')

    ```
    """
    distributions = list(data)
    names = [_name_of(vector) for vector in vectors]
    last_parts = [PurePath(name).name for name in names]
    given: dict[str, str] = {}
    faults = []
    if isinstance(regmean, Mapping):
        by_name = {_name_of(name): distribution for name, distribution in regmean.items()}
        try:
            full = full_names(by_name, names, "this search")
        except CoefficientError as error:
            faults.append(str(error))
        else:
            given = {full[name]: distribution for name, distribution in by_name.items()}
    own = []
    for name, last_part in zip(names, last_parts, strict=True):
        alike = [distribution for distribution in distributions if PurePath(distribution).name == last_part]
        if name in given:
            own.append(given[name])
            if given[name] not in distributions:
                faults.append(f"'{name}' is given the distribution {given[name]!r}, which has no data")
        elif len(alike) == 1 and last_parts.count(last_part) == 1:
            own.append(alike[0])
        else:
            faults.append(
                f"which distribution '{name}' was trained on is not known, as none has the one name '{last_part}'"
            )
    if faults:
        refuse(
            ConfigError,
            f"RegMean needs the own distribution of each vector, of {', '.join(map(repr, distributions))}.",
            faults,
            f"Name it: regmean={{{names[0]!r}: {distributions[0]!r}, ...}}, on the command line --own-data "
            "VECTOR=DISTRIBUTION.",
        )
    return tuple(own)


def _name_of(vector: str | VectorSource) -> str:
    """Return one spelling of a vector's name, without its revision."""
    return canonical_name(str(replace(VectorSource.parse(vector), revision=None)))


def check_regmean(
    regmean: Any, vectors: Sequence[Any], region: Region, score: Any, granularity: str, held_out: Any
) -> None:
    """Check the arguments of a search that also tries RegMean.

    Raises:
        `ConfigError`: It is neither `True` nor a mapping, or other arguments do not go with it.
    """
    if regmean is not True and not isinstance(regmean, Mapping):
        raise ConfigError(f"regmean is {regmean!r}; it must be True, False, or distributions by vector.")
    faults = []
    if len(vectors) == 1:
        faults.append("one vector alone, which RegMean leaves as it is")
    if score is not None:
        faults.append("a score, which has no data to run each vector on; make the vectors with dem_hub.regmean")
    if granularity != "model":
        faults.append(
            f"granularity='{granularity}', as each layer's matrix stands in for coefficients; search twice and compare "
            "held_out_loss"
        )
    if held_out == 0:
        faults.append("held_out=0, and RegMean is kept only where held-out data says so")
    if not region.contains(torch.ones(len(vectors), dtype=torch.float64, device="cpu")):
        faults.append(
            f"bounds from {region.low.tolist()} to {region.high.tolist()} and max_sum={region.max_sum}: RegMean's "
            "vectors have the coefficient 1 each, which must be allowed"
        )
    if world_size() > 1:
        faults.append(f"{world_size()} processes; run it on one")
    if faults:
        refuse(ConfigError, "regmean does not go with everything that was given.", faults)


def as_objective(
    objective: str | Objective, weights: Mapping[str, float] | None, data: Mapping[str, Any] | None
) -> Objective:
    """Return the objective of a search over the given data; without data, over a score.

    Raises:
        `ConfigError`: There is no such objective, weights are given twice, or they name no distribution of the data.
    """
    if isinstance(objective, Objective):
        if weights:
            raise ConfigError(
                f"weights are {dict(weights)}, and the objective has weights of its own: {dict(objective.weights)}. "
                "Give one of them."
            )
        chosen = objective
    else:
        chosen = Objective(objective, weights or {})  # type: ignore[arg-type]  # it refuses what is no kind
    names = list(data or {"score": None})
    # `factors` refuses weights for unknown names. Losses of the base are not known yet; 1 stands for them.
    chosen.factors(names, dict.fromkeys(names, 1.0))
    return chosen


def bound_pairs(bounds: tuple[float, float] | Sequence[tuple[float, float]], count: int) -> list[tuple[float, float]]:
    """Return the bounds as one (lower, upper) pair for each vector.

    Raises:
        `ConfigError`: The bounds are neither one pair nor one pair for each of `count` vectors.
    """
    given: list[Any] = plain(list(bounds))
    if len(given) == 2 and all(isinstance(value, int | float) for value in given):
        return [(float(given[0]), float(given[1]))] * count
    if len(given) != count or not all(isinstance(pair, Sized) and len(pair) == 2 for pair in given):
        raise ConfigError(f"bounds are {bounds!r}; give one (lower, upper) pair, or one for each of {count} vectors.")
    return [(float(low), float(high)) for low, high in given]
