"""A small search of the coefficients: one forward pass over the validation data a trial, nothing trained, nothing written.

One model is loaded and re-merged in place from trial to trial. The first trials are points that any user would try (the base, each
vector alone, equal shares, all at once), so that the answer is never worse than those; an Optuna sampler proposes the rest.
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dem_hub.config import DEMConfig
from dem_hub.errors import ConfigError, MissingDependencyError
from dem_hub.records import VectorSource
from dem_hub.search.objective import MAX_LENGTH, as_windows, evaluate, mean_loss

if TYPE_CHECKING:
    from dem_hub.loading import MergedModel

UPPER_BOUND = 1.5  # coefficients are looked for between 0 and this; their sum is free, and often above 1


@dataclass(frozen=True)
class Trial:
    """One candidate: its coefficients, in the order of the vectors, and the loss of each distribution, in nats a token."""

    coefficients: tuple[float, ...]
    losses: Mapping[str, float]

    @property
    def value(self) -> float:
        """The objective: the mean of the losses."""
        return sum(self.losses.values()) / len(self.losses)


@dataclass(frozen=True)
class SearchResult:
    """What a search found: the best recipe, and every trial in the order they were made. A forward pass over the data each."""

    config: DEMConfig
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The trial with the lowest objective; the first of equals."""
        return min(self.trials, key=lambda trial: trial.value)


def search_coefficients(  # noqa: PLR0913  every argument but three has a default
    base: str | os.PathLike[str] | VectorSource,
    vectors: Sequence[str | VectorSource],
    eval_datasets: Mapping[str, Any],
    *,
    n_trials: int = 20,
    seed: int = 0,
    tokenizer: Any = None,
    batch_size: int = 8,
    max_length: int = MAX_LENGTH,
    dtype: str | None = None,
    callback: Callable[[int, Trial], None] | None = None,
    **model_kwargs: Any,
) -> SearchResult:
    """Find the coefficients whose merged model has the lowest mean log-perplexity over the distributions.

    Args:
        base (`str`, `os.PathLike` or [`VectorSource`]): the base.
        vectors (`Sequence[str]`): the vectors.
        eval_datasets (`Mapping[str, Any]`): validation data by distribution: texts, the path of a text or JSONL file, or rows with
            `text` or `input_ids`. Keep it apart from training and test data.
        n_trials (`int`): forward passes over the data, the fixed first points included.
        seed (`int`): of the sampler.
        tokenizer (*optional*): the base's own by default.
        batch_size, max_length (`int`): windows in a batch, tokens in a window.
        dtype (`str`, *optional*): of the model searched on; the base's own by default, which is also what the recipe merges into.
        callback (*optional*): called with the number of each trial and the trial.
        model_kwargs: for [`DEMModel.from_pretrained`].

    Returns:
        [`SearchResult`]: `result.config` is the recipe.

    Raises:
        `ConfigError`: no vectors, no data or no trials. `MissingDependencyError`: Optuna is not installed.

    Source: section 2 of the DEM paper (Ram et al., EMNLP 2024) chooses coefficients by validation loss; the sampler is Optuna's.
    """
    from transformers import AutoTokenizer

    from dem_hub.loading import DEMModel

    if not vectors or not eval_datasets:
        raise ConfigError(f"A search needs vectors and eval_datasets; it was given {len(vectors)} and {len(eval_datasets)}.")
    if n_trials < 1:
        raise ConfigError(f"n_trials is {n_trials}; it must be 1 or more.")
    source = VectorSource.parse(base)
    names = [VectorSource.parse(vector) for vector in vectors]
    model = DEMModel.from_pretrained(
        source.repo_id, revision=source.revision, subfolder=source.subfolder, vectors=dict.fromkeys(names, 0.0), dtype=dtype, **model_kwargs
    )

    def load_tokenizer() -> Any:
        return tokenizer or AutoTokenizer.from_pretrained(source.repo_id, revision=source.revision, subfolder=source.subfolder)

    data = {name: as_windows(load_tokenizer, rows, max_length) for name, rows in eval_datasets.items()}
    trials = _run(model, data, n_trials, seed, batch_size, callback)
    best = min(trials, key=lambda trial: trial.value)
    recipe = model.dem.config.with_coefficients(dict(zip(model.dem.coefficients, best.coefficients, strict=True)))
    return SearchResult(replace(recipe, dtype=None, search=_provenance(trials, data, seed)), tuple(trials))


def _run(
    model: "MergedModel",
    data: Mapping[str, list[list[int]]],
    n_trials: int,
    seed: int,
    batch_size: int,
    callback: Callable[[int, Trial], None] | None,
) -> list[Trial]:
    from huggingface_hub.utils import tqdm

    names = list(model.dem.coefficients)
    study = _new_study(seed, [f"c{number}" for number in range(len(names))])
    trials: list[Trial] = []
    for number in tqdm(range(n_trials), desc="Searching", unit="trial"):
        proposed = study.ask()
        point = tuple(proposed.suggest_float(f"c{i}", 0.0, UPPER_BOUND) for i in range(len(names)))
        model.dem.set_coefficients(dict(zip(names, point, strict=True)))
        scores = evaluate(model, data, batch_size)
        trial = Trial(point, {name: score.loss for name, score in scores.items()})
        study.tell(proposed, mean_loss(scores))
        trials.append(trial)
        if callback is not None:
            callback(number, trial)
    return trials


def first_points(count: int) -> list[tuple[float, ...]]:
    """What anyone would try first: nothing, each vector alone, equal shares that sum to 1, half of each, all of each."""
    singles = [tuple(float(i == j) for j in range(count)) for i in range(count)]
    points = [(0.0,) * count, *singles, (1 / count,) * count, (0.5,) * count, (1.0,) * count]
    return list(dict.fromkeys(points))


def _new_study(seed: int, names: Sequence[str]) -> Any:
    try:
        import optuna
        import scipy  # noqa: F401  which Optuna's GPSampler asks for only when it is used
    except ImportError as error:
        raise MissingDependencyError(f"The search needs Optuna and SciPy ({error}): pip install 'dem-hub[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    points = first_points(len(names))
    with warnings.catch_warnings():  # of an option that Optuna calls experimental: the same point has the same loss
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.GPSampler(seed=seed, n_startup_trials=len(points), deterministic_objective=True)
    study = optuna.create_study(sampler=sampler, direction="minimize")
    for point in points:
        study.enqueue_trial(dict(zip(names, point, strict=True)))
    return study


def _provenance(trials: Sequence[Trial], data: Mapping[str, list[list[int]]], seed: int) -> dict[str, Any]:
    """How the coefficients were found, for the recipe."""
    best = min(trials, key=lambda trial: trial.value)
    return {
        "method": "optuna GPSampler",
        "seed": seed,
        "n_trials": len(trials),
        "tokens": {name: sum(len(window) - 1 for window in windows) for name, windows in data.items()},
        "losses": dict(best.losses),
        "base_losses": dict(trials[0].losses),
    }
