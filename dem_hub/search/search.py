"""`search_coefficients`: data and vectors in, a recipe out. It loads, splits, lets a strategy look, and has the answer accepted.

One model is in memory, merged anew in place from point to point. The search sees one part of the data; whether its answer is better
than what anyone would have tried is decided on the other.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from dem_hub.defaults import (
    BATCH_SIZE,
    BOUNDS,
    GRANULARITY,
    HELD_OUT,
    MAX_LENGTH,
    METHOD,
    OBJECTIVE,
    SEARCH_DTYPE,
    SEED,
    Granularity,
)
from dem_hub.errors import CoefficientError, ConfigError
from dem_hub.evaluation import processes
from dem_hub.evaluation.likelihood import is_seq2seq
from dem_hub.evaluation.reader import Reader, read_and_split
from dem_hub.evaluation.rows import check_files
from dem_hub.hub.references import VectorSource
from dem_hub.search.arguments import check, check_granularity, pairs
from dem_hub.search.cross_loss import BASE, CrossLoss, geometry_flags
from dem_hub.search.held_out import Acceptance, accept, common_of, rivals
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.loss_evaluator import LOGIT_BYTES, LossEvaluator
from dem_hub.search.measure.score_evaluator import ScoreEvaluator
from dem_hub.search.per_group import Refinement, refine
from dem_hub.search.points import Point
from dem_hub.search.problem import Problem, Strategy, Trial
from dem_hub.search.result import SearchResult
from dem_hub.search.resumption import Earlier, EarlierSearch
from dem_hub.search.solve.newton import common_point
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.region import Region, common_bounds
from dem_hub.search.strategies import choose
from dem_hub.vectors.comparison import Comparison, compare

if TYPE_CHECKING:
    from dem_hub.models.loading import MergedModel

logger = logging.getLogger(__name__)


def search_coefficients(  # noqa: PLR0913  every argument but three has a default
    base: str | os.PathLike[str] | VectorSource,
    vectors: Sequence[str | VectorSource],
    eval_datasets: Mapping[str, Any] | None = None,
    *,
    method: str | Strategy = METHOD,
    objective: str | Objective = OBJECTIVE,
    weights: Mapping[str, float] | None = None,
    score: Callable[[Any], float] | None = None,
    direction: str = "maximize",
    bounds: tuple[float, float] | Sequence[tuple[float, float]] = BOUNDS,
    max_sum: float | None = None,
    max_forward: float | None = None,
    held_out: float | Mapping[str, Any] = HELD_OUT,
    resume_from: Earlier | None = None,
    cache: str | os.PathLike[str] | None = None,
    seed: int = SEED,
    tokenizer: Any = None,
    batch_size: int = BATCH_SIZE,
    max_length: int = MAX_LENGTH,
    packing: bool = False,
    logit_bytes: int = LOGIT_BYTES,
    granularity: Granularity = GRANULARITY,
    dtype: str | None = SEARCH_DTYPE,
    callback: Callable[[int, Trial], None] | None = None,
    **model_kwargs: Any,
) -> SearchResult:
    """Find the coefficients whose merged model has the lowest loss over several distributions.

    Args:
        base (`str`, `os.PathLike` or [`VectorSource`]): the base.
        vectors (`Sequence[str]`): the vectors.
        eval_datasets (`Mapping[str, Any]`, *optional*): validation data by distribution, in any form that [`Reader.windows`] reads:
            texts, files, rows, conversations, token ids. Keep it apart from training and test data.
        method (`str` or [`Strategy`]): `gauss_newton`, `gradient`, `quadratic`, `optuna`, `grid`, `uniform`, one of these as an object with
            options of its own (`Grid((0, 0.5, 1))`, `Optuna("tpe")`), or `auto`, which chooses and says so.
        objective (`str` or [`Objective`]): `mean`, `worst` or `improvement`.
        weights (`Mapping[str, float]`, *optional*): by distribution.
        score (`Callable`, *optional*): any other score of a model, in place of losses. A `cache` knows it by its name.
        direction (`str`): whether a `score` is to `maximize` or `minimize`.
        bounds: of all coefficients, or a pair for each.
        max_sum (`float`, *optional*): the most that the coefficients may sum to.
        max_forward (`float`, *optional*): forward passes over the search data at most; what the method usually needs by default.
        held_out (`float` or `Mapping`): the share of documents on which the answer is accepted, or data for that; 0 accepts it unseen.
        resume_from (*optional*): a [`SearchResult`] to grow from (what it measured is not measured again), or a recipe to start from.
        cache (`str` or `os.PathLike`, *optional*): a folder for everything measured; a search that was killed goes on from there.
        seed (`int`): of the split and of samplers.
        tokenizer (*optional*): the base's own by default.
        batch_size, max_length (`int`), packing (`bool`): windows in a batch, tokens in a window, whether documents share windows.
        logit_bytes (`int`): memory for logits.
        granularity (`str`): `model`, one coefficient a vector; `group`, then also one for each of its embeddings, attention, MLPs and the
            rest; `block`, one for each of four runs of layers and the rest. They are kept where they are better on the held-out data.
        dtype (`str`): of the model searched on; the recipe merges into the base's own whatever this is. 16 bits round away part of what
            small steps change, so that float32 is the default; `None` is the base's own.
        callback (*optional*): called with the number of each trial and the trial.
        model_kwargs: for [`DEMModel.from_pretrained`].

    Returns:
        [`SearchResult`]: `result.config` is the recipe.

    Raises:
        `ConfigError`: no vectors, no data, data with nothing to score, or an option that does not exist; names all at once.
        `NotFoundError`: no base, vector or earlier search there.
        `CoefficientError`: a loss of the base, or of a vector alone, that is not finite.
        `MissingDependencyError`: the method needs Optuna or SciPy (extra `search`).

    Example:

    ```python
    >>> from dem_hub import search_coefficients
    >>> texts = [" ".join(f"w{(start + i) % 50}" for i in range(20)) for start in range(8)]
    >>> result = search_coefficients(base_folder, [vector_folder], {"counting": texts})
    >>> result.method, list(result.coefficients) == [vector_folder], result.num_forward <= 12
    ('gauss_newton', True, True)

    ```

    Source: the DEM paper (Ram et al., EMNLP 2024) chooses coefficients by validation loss, on a grid.
    """
    began = time.monotonic()
    check(vectors, eval_datasets, score, direction, max_forward, held_out)
    check_granularity(granularity, score, held_out, max_sum)
    for datasets in (eval_datasets, held_out):
        check_files(datasets if isinstance(datasets, Mapping) else {})
    if weights and isinstance(objective, Objective):
        raise ConfigError(
            f"weights are {dict(weights)}, and the objective has weights of its own: {dict(objective.weights)}. Give one of them."
        )
    processes.join()
    strategy, reason = choose(method, len(vectors), is_score=score is not None)
    goal = objective if isinstance(objective, Objective) else Objective(objective, weights or {})  # type: ignore[arg-type]
    names = list(eval_datasets or {"score": None})
    goal.factors(names, dict.fromkeys(names, 1.0))  # refuses unknown weights before anything is loaded
    region = Region.of(pairs(bounds, len(vectors)), max_sum)
    before = EarlierSearch.of(resume_from)
    kept = MeasurementCache(cache, before.cache)
    model = _load(base, vectors, dtype, model_kwargs)
    judge = None
    if score is not None:
        measure: ScoreEvaluator | LossEvaluator = ScoreEvaluator(model, score, kept, maximize=direction == "maximize")
    else:
        reader = Reader(_tokenizer(tokenizer, base), max_length, is_seq2seq(model), packing)
        data, held = read_and_split(reader, eval_datasets or {}, held_out, seed)
        measure = LossEvaluator(model, data, kept, batch_size=batch_size, logit_bytes=logit_bytes)
        judge = LossEvaluator(model, held, kept, batch_size=batch_size)
    start = before.start(measure.names)
    quick = start is not None and before.has_logits
    problem = Problem(measure, goal, region, max_forward, start, quick, seed, callback)
    problem.notes += [reason] if reason else []
    if judge is not None:
        problem.warn_of_few()
    strategy.search(problem)
    if judge is None:
        for point in rivals(measure.names, None).values():  # the best of all trials is what is found
            problem.evaluate(point)
    _refuse_nothing_finite(problem)
    best, accepted = _accept(problem, judge, before) if judge is not None else (problem.best, None)
    refined = _refine(problem, judge, best, accepted, granularity)
    table = CrossLoss.of(measure) if isinstance(measure, LossEvaluator) else None
    _tell(
        problem,
        table if judge is None or (table and len(table.cells) > len(vectors)) else CrossLoss.of(judge),
        model,
        reason,
    )
    plain = measure.coordinates.coefficients(best.coefficients)
    recipe = model.dem.config.with_coefficients(refined.coefficients if refined and refined.is_kept else plain)
    result = SearchResult(
        config=recipe,
        method=strategy.name,
        best=best,
        trials=tuple(problem.trials),
        objective=goal,
        bounds=tuple(problem.bounds()),
        num_forward=problem.num_forward + (refined.num_forward if refined else 0.0),
        seconds=time.monotonic() - began,
        tokens={name: sum(counts) for name, counts in measure.tokens.items()}
        if isinstance(measure, LossEvaluator)
        else {},
        max_sum=max_sum,
        num_forward_held_out=(judge.num_forward if judge else 0.0) + (refined.num_forward_held_out if refined else 0.0),
        table=table,
        acceptance=accepted,
        model=problem.model,
        refinement=refined,
        notes=tuple(problem.notes),
        cache=kept,
    )
    return replace(result, config=replace(recipe, dtype=None, search=_provenance(result, seed)))


def _load(
    base: str | os.PathLike[str] | VectorSource,
    vectors: Sequence[str | VectorSource],
    dtype: str | None,
    kwargs: Mapping[str, Any],
) -> "MergedModel":
    from dem_hub.models.loading import DEMModel

    source = VectorSource.parse(base)
    names = [VectorSource.parse(vector) for vector in vectors]
    twice = sorted({str(name) for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"Vectors named twice: {', '.join(twice)}. Name each once.")
    zeros: dict[VectorSource, float] = dict.fromkeys(names, 0.0)
    return DEMModel.from_pretrained(
        source.repo_id, revision=source.revision, subfolder=source.subfolder, vectors=zeros, dtype=dtype, **kwargs
    )


def _tokenizer(tokenizer: Any, base: str | os.PathLike[str] | VectorSource) -> Callable[[], Any]:
    """The tokenizer, loaded when it is first needed."""
    loaded: list[Any] = [tokenizer] if tokenizer is not None else []

    def load() -> Any:
        from transformers import AutoTokenizer

        if not loaded:
            source = VectorSource.parse(base)
            loaded.append(
                AutoTokenizer.from_pretrained(source.repo_id, revision=source.revision, subfolder=source.subfolder)
            )
        return loaded[0]

    return load


def _refuse_nothing_finite(problem: Problem) -> None:
    """There is no best of trials that all diverged."""
    if not math.isfinite(problem.best.value):
        raise CoefficientError(
            f"None of {len(problem.trials)} trials is finite, not even with the coefficients {list(problem.best.coefficients)}: "
            f"{dict(problem.best.losses)}. Use another dtype, another base, or vectors that did not diverge."
        )


def _accept(problem: Problem, judge: LossEvaluator, before: EarlierSearch) -> tuple[Trial, Acceptance | None]:
    """The trial to use, and the comparison on held-out data where there is any of each distribution."""
    missing = [
        f"'{name}' ({sum(problem.loss_evaluator.tokens[name])} tokens to search on)"
        for name, windows in judge.data.items()
        if not windows
    ]
    if missing:
        problem.notes.append(
            f"Not accepted on held-out data: there is none of {', '.join(missing)}. The search's word is all."
        )
        return problem.best, None
    obvious = rivals(problem.measure.names, _common(problem, judge), before.unchanged(problem.measure.names))
    others = {
        label: point
        for label, point in obvious.items()
        if problem.region.contains(torch.tensor(point, dtype=torch.float64))
    }
    accepted = accept(judge, problem.objective, problem.best.coefficients, others)
    if accepted.is_found:
        return problem.best, accepted
    chosen = accepted.contenders[accepted.chosen]
    problem.notes.append(
        f"On held-out data '{accepted.chosen}' is better than what was found by {-chosen.difference:.4f} nats (standard error {chosen.error:.4f}), "
        "and is what is returned."
    )
    return problem.evaluate(chosen.coefficients), accepted


def _common(problem: Problem, judge: LossEvaluator) -> Point | None:
    """The best common coefficient on held-out data, looked for from what the search's statistics say; `None` where there is none."""
    low, high = common_bounds(problem.region)
    if problem.count < 2 or low > high:
        return None
    if problem.model is not None:
        guess = float(common_point(problem.model, problem.objective, problem.region, problem.base_losses)[0])
    else:
        guess = sum(problem.best.coefficients) / problem.count
    return common_of(judge, problem.objective, problem.region, guess)


def _refine(
    problem: Problem, judge: LossEvaluator | None, best: Trial, accepted: Acceptance | None, granularity: Granularity
) -> Refinement | None:
    """The search by groups, where that is asked for, and there is held-out data to accept it on."""
    if judge is None or granularity == "model":
        return None
    if accepted is None:
        problem.notes.append(
            f"Coefficients by {granularity} were not looked for: held-out data of each distribution must accept them."
        )
        return None
    refined = refine(problem, judge, best, granularity)
    problem.notes += [refined.note()] if refined is not None else []
    return refined


def _tell(problem: Problem, table: CrossLoss | None, model: "MergedModel", reason: str) -> None:
    """Add what the table and the vectors' geometry say to the notes, and log them."""
    problem.notes += table.flags() if table is not None else []
    problem.notes += geometry_flags(_geometry(model)) if problem.count > 1 else []
    for note in problem.notes:
        logger.log(logging.INFO if note == reason else logging.WARNING, "%s", note)


def _geometry(model: "MergedModel") -> Comparison:
    opened = model.dem.open()
    return compare(opened.vectors, opened.base, tuple(model.dem.coefficients))


def _provenance(result: SearchResult, seed: int) -> dict[str, Any]:
    """How the coefficients were found, for the recipe."""
    data: dict[str, Any] = {
        "method": result.method,
        "seed": seed,
        "n_trials": len(result.trials),
        "num_forward": round(result.num_forward, 3),
        "objective": result.objective.kind,
        "tokens": dict(result.tokens),
        "losses": dict(result.chosen.losses),
    }
    if result.refinement is not None:
        data["granularity"] = {
            "of": result.refinement.granularity,
            "kept": result.refinement.is_kept,
            "gain": result.refinement.one.difference,
        }
    if result.table is not None and BASE in result.table.cells:
        data["base_losses"] = {name: cell.loss for name, cell in result.table.cells[BASE].items()}
    if result.acceptance is not None:
        data["held_out"] = {
            "chosen": result.acceptance.chosen,
            "loss": result.held_out_loss,
            "baselines": result.baselines,
        }
    return data
