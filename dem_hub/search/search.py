"""`search_coefficients`: data and vectors in, a recipe out.

One model is in memory; it is merged again in place for each point. The search sees one part of the data. Whether
its answer is better than the baselines is decided on the other part, so that the answer is never clearly worse than
what needs no search.
"""

import logging
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

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
from dem_hub.errors import CoefficientError
from dem_hub.evaluation import processes
from dem_hub.evaluation.columns import with_columns
from dem_hub.evaluation.reader import Reader, read_and_split
from dem_hub.files.plain_numbers import plain
from dem_hub.hub.references import VectorSource
from dem_hub.models.measurable import Measurable, tokenizer_loader
from dem_hub.search.answer import Answer, accept_answer, refine_answer, try_regmean
from dem_hub.search.arguments import (
    as_objective,
    bound_pairs,
    check,
    check_granularity,
    check_model,
    check_regmean,
    own_distributions,
)
from dem_hub.search.cross_loss import CrossLoss, geometry_flags
from dem_hub.search.held_out import baseline_points
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.loss_evaluator import LOGIT_BYTES, LossEvaluator
from dem_hub.search.measure.own_inputs import OwnInputs
from dem_hub.search.measure.score_evaluator import ScoreEvaluator
from dem_hub.search.outline import outlined
from dem_hub.search.problem import Callback, Problem, Strategy
from dem_hub.search.progress import Progress, plain_loading
from dem_hub.search.provenance import provenance
from dem_hub.search.result import SearchResult
from dem_hub.search.resumption import EarlierSearch, ResumeFrom, keeping
from dem_hub.search.session import Session
from dem_hub.search.solve.local_model import LocalModel
from dem_hub.search.solve.objective import Objective
from dem_hub.search.solve.region import Region
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
    columns: Mapping[str, str | Sequence[str]] | None = None,
    resume_from: ResumeFrom | None = None,
    cache: str | os.PathLike[str] | None = None,
    keep_logits: bool = False,
    seed: int = SEED,
    tokenizer: Any = None,
    batch_size: int = BATCH_SIZE,
    max_length: int = MAX_LENGTH,
    packing: bool = False,
    logit_bytes: int = LOGIT_BYTES,
    granularity: Granularity = GRANULARITY,
    regmean: bool | Mapping[str, str] = False,
    dtype: str | None = SEARCH_DTYPE,
    callback: Callback | None = None,
    **model_kwargs: Any,
) -> SearchResult:
    """Find the coefficients whose merged model has the lowest loss over several distributions.

    Args:
        base (`str`, `os.PathLike` or [`VectorSource`]): Hub id or folder of the base, which may be a recipe.
        vectors (`Sequence[str]`): Hub ids or folders of the vectors.
        eval_datasets (`Mapping[str, Any]`, *optional*): Validation data by distribution, in any form that
            [`Reader.windows`] reads: texts, files, rows, conversations, token ids, `openai/gsm8k:main:test`. Keep it
            apart from training and test data.
        method (`str` or [`Strategy`], defaults to `"auto"`): `gauss_newton`, `gradient`, `quadratic`, `optuna`,
            `grid`, `uniform`, one of these as an object with options of its own (`Grid((0, 0.5, 1))`,
            `Optuna("tpe")`), or `auto`, which chooses and says so.
        objective (`str` or [`Objective`], defaults to `"mean"`): `mean`, `worst` or `improvement`.
        weights (`Mapping[str, float]`, *optional*): Weights of distributions in the objective, 1 where none is given.
        score (`Callable`, *optional*): Any other score of a model, in place of losses. A `cache` knows it by its
            name.
        direction (`str`, defaults to `"maximize"`): Whether to `maximize` or `minimize` a `score`.
        bounds (defaults to `(0.0, 1.5)`): One (lower, upper) pair for all coefficients, or one for each.
        max_sum (`float`, *optional*): Limit of the sum of the coefficients.
        max_forward (`float`, *optional*): Limit in forward passes over the search data. By default what the method
            usually needs.
        held_out (`float` or `Mapping`, defaults to 0.25): Share of the documents on which the answer is accepted,
            or data for that; 0 accepts the answer without a comparison.
        columns (`Mapping`, *optional*): By distribution the columns of its prompt and its completion, or its one
            column of texts or conversations, where the data have names of their own.
        resume_from (*optional*): A [`SearchResult`] to grow from (what it measured is not measured again), or a
            recipe to start from.
        cache (`str` or `os.PathLike`, *optional*): Folder for everything measured. A search that was killed goes on
            from there.
        keep_logits (`bool`, defaults to `False`): Whether the logits, which are large, stay in the `cache` when
            the search has ended. A search there for one more vector then runs no known vector alone again.
        seed (`int`, defaults to 0): Seed of the split and of samplers.
        tokenizer (*optional*): By default that of the base.
        batch_size (`int`, defaults to 8): Windows in a forward pass; fewer where their logits take more than 512 MiB.
        max_length (`int`, defaults to 1024): Tokens in a window.
        packing (`bool`, defaults to `False`): Whether documents share windows.
        logit_bytes (`int`, defaults to 512 MiB): Memory for logits.
        granularity (`str`, defaults to `"model"`): `model`, one coefficient a vector; `group`, then also one for
            each of its embeddings, attention, MLPs and the rest; `block`, then also one for each of four runs of
            layers and the rest. Such coefficients are kept where they are better on the held-out data.
        regmean (`bool` or `Mapping[str, str]`, defaults to `False`): Whether to make RegMean vectors too, from what the
            layers read in the search's own passes, and to keep them, at 1 each, where they are better on the held-out
            data. Each vector's own distribution is the one whose name ends like the vector's; a mapping names others.
        dtype (`str`, defaults to `"float32"`): Type of the model that is searched on; `None` is the base's own. The
            recipe merges into the base's own in any case. In 16 bits, rounding removes part of what small steps
            change.
        callback (*optional*): Called with the number of each trial and the trial.
        model_kwargs: Further arguments of [`DEMModel.from_pretrained`].

    Returns:
        [`SearchResult`]: `result.config` is the recipe.

    Raises:
        `ConfigError`: There are no vectors, no data, data with nothing to score, logits to keep without a cache, or an
            option that does not exist; all of it is listed.
        `NotFoundError`: The base, a vector or the earlier search is not found.
        `CoefficientError`: A loss of the base, or of a vector alone, is not finite.
        `MissingDependencyError`: The method needs Optuna or SciPy (extra `search`).

    Example:

    ```python
    >>> from dem_hub import search_coefficients
    >>> texts = [" ".join(f"w{(start + i) % 50}" for i in range(20)) for start in range(8)]
    >>> result = search_coefficients(base_folder, [vector_folder], {"counting": texts})
    >>> result.method, list(result.coefficients) == [vector_folder], result.num_forward <= 12
    ('gauss_newton', True, True)

    ```

    Source: The DEM paper (Ram et al., EMNLP 2024) chooses coefficients by validation loss, on a grid.
    """
    began = time.monotonic()

    # Whatever can be refused is refused before anything is loaded.
    eval_datasets, held_out = with_columns(eval_datasets, held_out, columns)
    max_sum, seed = plain((max_sum, seed))
    check(vectors, eval_datasets, score, direction, max_forward, held_out, seed)
    check_granularity(granularity, score, held_out, max_sum)
    objective = as_objective(objective, weights, eval_datasets)
    strategy, reason = choose(method, len(vectors), is_score=score is not None)
    region = Region.of(bound_pairs(bounds, len(vectors)), max_sum)

    _join(model_kwargs)
    own: tuple[str, ...] = ()
    if regmean is not False:
        check_regmean(regmean, vectors, region, score, granularity, held_out)
        own = own_distributions(vectors, eval_datasets or {}, regmean)
    earlier = EarlierSearch.of(resume_from)
    measurements = MeasurementCache(cache, earlier.cache, keep_logits=keep_logits)
    measurable = Measurable(base, vectors, dtype, model_kwargs)
    progress = Progress()
    evaluator: ScoreEvaluator | LossEvaluator
    held_out_evaluator: LossEvaluator | None = None
    if score is not None:
        model = _load(measurable)
        evaluator = ScoreEvaluator(model, score, measurements, maximize=direction == "maximize", progress=progress)
    else:
        # Data that cannot be used are found before the weights are loaded.
        load_tokenizer = tokenizer_loader(tokenizer, base, model_kwargs)
        reader = Reader.of_model(measurable.config, load_tokenizer, max_length, packing=packing)
        search_windows, held_out_windows = read_and_split(reader, eval_datasets or {}, held_out, seed)
        model = _load(measurable)
        own_inputs = None
        if own and all(held_out_windows.values()):
            own_inputs = OwnInputs(model, own)
        evaluator = LossEvaluator(
            model,
            search_windows,
            measurements,
            batch_size=batch_size,
            logit_bytes=logit_bytes,
            own_inputs=own_inputs,
            progress=progress,
        )
        held_out_evaluator = LossEvaluator(
            model, held_out_windows, measurements, batch_size=batch_size, progress=progress, part="held-out "
        )
    start = earlier.start(evaluator.names)
    problem = Problem(
        evaluator,
        objective,
        region,
        max_forward,
        start,
        quick=start is not None and isinstance(evaluator, LossEvaluator) and evaluator.has_logits(earlier.cache),
        seed=seed,
        callback=callback,
        progress=progress,
        held_out=held_out_evaluator,
    )
    session = Session(model, evaluator, problem, held_out_evaluator, earlier, measurements)

    with outlined(session, strategy.name), keeping(measurements):
        local_model = _search(session, strategy)
        answer = accept_answer(session, local_model)
        answer = refine_answer(session, answer, granularity)
        if own:
            answer = try_regmean(session, answer, own)
        notes = _notes(session, answer, reason)
    _log(notes, reason)  # after the bar, which would be on the same line
    result = _result(session, answer, local_model, strategy.name, notes)
    return replace(
        result,
        config=replace(result.config, search=provenance(result, seed)),
        seconds=time.monotonic() - began,
    )


def _load(measurable: Measurable) -> "MergedModel":
    with plain_loading():
        return measurable.model


def _join(model_kwargs: Mapping[str, Any]) -> None:
    """Join the processes of a launcher, each of which will hold the whole model."""
    check_model(model_kwargs)
    processes.join()


def _search(session: Session, strategy: Strategy) -> LocalModel | None:
    """Let the strategy score points, and return its model of the losses around the best one.

    Raises:
        `CoefficientError`: No trial has a finite loss.
    """
    problem = session.problem
    local_model = strategy.search(problem)
    if session.held_out is None:
        # A score has no held-out part. The baselines become trials, and the best of all trials is the answer.
        for point in baseline_points(problem.evaluator.names, None).values():
            problem.evaluate(point)
    if not math.isfinite(problem.best.value):
        raise CoefficientError(
            f"None of {len(problem.trials)} trials is finite, not even with the coefficients "
            f"{list(problem.best.coefficients)}: {dict(problem.best.losses)}. Use another dtype, another base, "
            "or vectors that did not diverge."
        )
    problem.note_ties()
    return local_model


def _notes(session: Session, answer: Answer, reason: str) -> tuple[str, ...]:
    """Return what the user should know, in the order in which it happened."""
    problem = session.problem
    notes = [reason] if reason else []
    if session.held_out is not None:
        notes += problem.notes_on_tokens()
    notes += problem.notes
    notes += answer.notes
    if session.held_out is not None:
        notes += session.complete_table(session.held_out).flags()
    if problem.count > 1:
        notes += geometry_flags(_geometry(session.model))
    return tuple(notes)


def _log(notes: Sequence[str], reason: str) -> None:
    for note in notes:
        level = logging.INFO if note == reason else logging.WARNING
        logger.log(level, "%s", note)


def _geometry(model: "MergedModel") -> Comparison:
    opened = model.dem.open()
    return compare(opened.vectors, opened.base, tuple(model.dem.coefficients))


def _result(
    session: Session, answer: Answer, local_model: LocalModel | None, method: str, notes: tuple[str, ...]
) -> SearchResult:
    """Put the record together; its recipe does not say yet how the coefficients were found."""
    problem = session.problem
    num_forward = problem.num_forward
    num_forward_held_out = 0.0
    table = None
    tokens = {}
    if session.held_out is not None:
        num_forward_held_out = session.held_out.num_forward
        table = CrossLoss.of(problem.loss_evaluator)
        tokens = {name: sum(counts) for name, counts in problem.loss_evaluator.tokens.items()}
    coefficients = session.evaluator.coordinates.coefficients(answer.best.coefficients)
    refinement = answer.refinement
    if refinement is not None:
        num_forward += refinement.num_forward
        num_forward_held_out += refinement.num_forward_held_out
        if refinement.is_kept:
            coefficients = dict(refinement.coefficients)
    # The dtype is that of the search; a recipe without one merges into the base's own.
    config = replace(session.model.dem.config.with_coefficients(coefficients), dtype=None)
    regmean = answer.regmean
    if regmean is not None:
        num_forward_held_out += regmean.num_forward_held_out
        if regmean.is_kept and regmean.recipe is not None:
            config = regmean.recipe
    return SearchResult(
        config=config,
        method=method,
        best=answer.best,
        trials=tuple(problem.trials),
        objective=problem.objective,
        bounds=tuple(problem.bounds()),
        num_forward=num_forward,
        seconds=0.0,
        tokens=tokens,
        max_sum=problem.region.max_sum,
        num_forward_held_out=num_forward_held_out,
        table=table,
        acceptance=answer.acceptance,
        model=local_model,
        notes=notes,
        refinement=refinement,
        regmean=regmean,
        score=session.evaluator.score if isinstance(session.evaluator, ScoreEvaluator) else None,
        cache=session.cache,
    )
