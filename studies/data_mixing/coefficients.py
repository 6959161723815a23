"""The search for coefficients, by every strategy on the same validation text, each counting its forward passes for itself.

The grid of the paper has a value in so many steps for each vector: 625 points for four. Only the points that `gauss_newton`'s statistics
rank first are scored; what the grid costs is counted as if all were.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from dem_hub import search_coefficients
from dem_hub.search import GaussNewton, Grid, Optuna, SearchResult, Strategy, TrustRegion, Uniform
from dem_hub.search.problem import Problem
from studies.data_mixing.cache import keep
from studies.data_mixing.settings import Settings

FOUND = "gauss_newton"
COMMON = "uniform"
GROWN = "gauss_newton, grown"


@dataclass(frozen=True)
class Shortlist:
    """Some points of a grid, scored."""

    points: tuple[tuple[float, ...], ...]
    name: str = "grid"

    def search(self, problem: Problem) -> None:
        """Score them."""
        for point in self.points:
            problem.evaluate(point)


def search_all(
    base: Path, vectors: Sequence[Path], data: dict[str, Any], folder: Path, settings: Settings
) -> dict[str, Any]:
    """Search by every strategy, for all vectors but the last; then add the last one to what `gauss_newton` found.

    Args:
        base (`Path`): the base.
        vectors (`Sequence[Path]`): of the distributions, in the order of `data`; the last is the one that comes later.
        data (`dict[str, Any]`): validation windows by distribution.
        folder (`Path`): for what is measured and found.
        settings ([`Settings`]): grid, trials, seed.

    Returns:
        `dict`: for each strategy coefficients, loss, forward passes, seconds and number of trials.
    """
    names = list(data)
    first, later = names[:-1], names[-1]
    known = {name: data[name] for name in first}
    folder.mkdir(parents=True, exist_ok=True)

    def run(label: str, strategy: Strategy, count: int | None = None) -> dict[str, Any]:
        result = search_coefficients(
            base,
            list(map(str, vectors[:-1])),
            known,
            method=strategy,
            held_out=0,
            max_forward=count,
            seed=settings.seed,
            cache=folder / f"store {label}",
        )
        # With the logits one more vector costs little. What a run left that was killed after this line is replaced.
        result.save_pretrained(folder / label, with_logits=label == FOUND, exist_ok=True)
        result.plot("trials", folder / f"{label}.png")
        return _record(result, first)

    def grow() -> dict[str, Any]:
        result = search_coefficients(
            base,
            list(map(str, vectors)),
            data,
            method=GaussNewton(),
            held_out=0,
            seed=settings.seed,
            resume_from=folder / FOUND,
            cache=folder / f"store {GROWN}",
        )
        result.save_pretrained(folder / GROWN, exist_ok=True)
        return _record(result, [*first, later])

    found = {FOUND: keep(folder / f"{FOUND}.json", lambda: run(FOUND, GaussNewton()))}
    found[GROWN] = keep(folder / f"{GROWN}.json", grow)
    found["quadratic"] = keep(folder / "quadratic.json", lambda: run("quadratic", TrustRegion()))
    found[COMMON] = keep(folder / f"{COMMON}.json", lambda: run(COMMON, Uniform()))
    found["grid"] = keep(
        folder / "grid.json", lambda: run("grid", _shortlist(SearchResult.from_pretrained(folder / FOUND), settings))
    )
    found["grid"]["num_forward"] = float(len(settings.grid) ** len(first))
    found["optuna tpe"] = keep(folder / "optuna tpe.json", lambda: run("optuna tpe", Optuna("tpe"), settings.trials))
    return found


def _shortlist(result: SearchResult, settings: Settings) -> Strategy:
    points = list(product(settings.grid, repeat=len(result.coefficients)))
    model = result.model
    if model is None:
        return Grid(settings.grid)
    points.sort(key=lambda point: result.objective.value(model.losses(point)))
    return Shortlist(tuple(points[: settings.grid_scored]))


def _record(result: SearchResult, names: Sequence[str]) -> dict[str, Any]:
    return {
        "coefficients": dict(zip(names, result.best.coefficients, strict=True)),
        "loss": result.loss,
        "num_forward": result.num_forward,
        "seconds": result.seconds,
        "trials": len(result.trials),
        "tokens": dict(zip(names, result.tokens.values(), strict=True)),
        "mixing_ratio": dict(
            zip(names, result.mixing_ratio.values(), strict=bool(result.mixing_ratio))
        ),  # none where all are 0
        "notes": list(result.notes),
    }
