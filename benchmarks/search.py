"""The coefficient search on real fine-tunes: what each method finds, for how many forward passes, and what that is worth on test text.

    python benchmarks/finetunes.py finetunes
    python benchmarks/search.py finetunes gsm code reference                 # 125 points of a grid, and everything else
    python benchmarks/search.py finetunes gsm code reference tasks --grid-best 60

Every method is given the same validation tokens and a count of its own, and its best point is scored on test text from other documents.
`--grid-best` scores only so many grid points, those that are best by the statistics of `gauss_newton`, of a grid too large to be scored
whole. What is done is kept in the folder, method by method; a run that is killed goes on.

Exits with an error where `gauss_newton` or `quadratic` needs more forward passes than promised, or is worse than the grid's best point, or
where what `gauss_newton` chose is no better than 1/N and the best common coefficient on test text.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from dem_hub import DistributionVector, search_coefficients
from dem_hub.loading import DEMModel
from dem_hub.search import GaussNewton, Grid, Optuna, SearchResult, Strategy, TrustRegion, Uniform
from dem_hub.search.data import Window
from dem_hub.search.objective import evaluate
from dem_hub.search.problem import Problem

VALUES = (0.0, 0.25, 0.5, 0.75, 1.0)
WINDOW = 256  # tokens
N_TRIALS = 40  # of Optuna's samplers
GRID = "grid"


@dataclass(frozen=True)
class Shortlist:
    """Some points, scored."""

    points: tuple[tuple[float, ...], ...]
    name: str = GRID

    def search(self, problem: Problem) -> None:
        """Score them."""
        for point in self.points:
            problem.evaluate(point)


def windows(tokenizer: Any, path: Path, tokens: int) -> list[Window]:
    """The beginnings of as many documents as it takes."""
    found: list[Window] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        ids = tuple(tokenizer(json.loads(line)["text"])["input_ids"][:WINDOW])
        if len(ids) > 1:
            found.append(Window(ids, ids, number))
        if sum(len(window.input_ids) for window in found) >= tokens:
            break
    return found


def methods(grid_best: int | None, first: SearchResult | None) -> dict[str, Strategy]:
    """By name; the grid last."""
    found: dict[str, Strategy] = {
        "gauss_newton": GaussNewton(),
        "quadratic": TrustRegion(),
        "uniform": Uniform(),
        **{f"optuna {name}": Optuna(name) for name in ("gp", "tpe", "cmaes")},
        GRID: Grid(VALUES),
    }
    if grid_best is not None and first is not None and first.model is not None:
        points = list(product(VALUES, repeat=len(first.coefficients)))
        model = first.model
        points.sort(key=lambda point: first.objective.value(model.losses(point)))
        found[GRID] = Shortlist(tuple(points[:grid_best]))
    return found


def forwards_to(trials: Sequence[dict[str, Any]], target: float, total: float) -> str:
    """How many forward passes it took to a loss, where every trial is one."""
    reached = [number for number, trial in enumerate(trials, 1) if trial["value"] <= target]
    return f"{min(reached[0], total):g}" if reached else "never"


def run(folder: Path, names: Sequence[str], tokens: int, wanted: Sequence[str], grid_best: int | None) -> dict[str, Any]:
    """Everything that is not there yet; returns the records by method."""
    base, work = folder / "base", folder / "search" / f"{'-'.join(names)}-{tokens}"
    vectors = [folder / "vectors" / name for name in names]
    for name, vector in zip(names, vectors, strict=True):
        if not vector.is_dir():
            DistributionVector.extract(base, folder / "full" / name).save_pretrained(vector)
    tokenizer = AutoTokenizer.from_pretrained(base)
    sides = {
        side: {name: windows(tokenizer, folder / "texts" / f"{name}.{side}.jsonl", tokens) for name in names}
        for side in ("validation", "test")
    }
    work.mkdir(parents=True, exist_ok=True)
    records: dict[str, Any] = {}
    model = DEMModel.from_pretrained(base, vectors={str(vector): 0.0 for vector in vectors}, dtype="float32")
    first = SearchResult.from_pretrained(work / "result gauss_newton") if (work / "result gauss_newton").is_dir() else None
    for name in wanted:
        path = work / f"{name}.json"
        if not path.is_file():
            strategy = methods(grid_best, first)[name]
            count = N_TRIALS if isinstance(strategy, Optuna) else None
            result = search_coefficients(
                base,
                list(map(str, vectors)),
                sides["validation"],
                method=strategy,
                held_out=0,
                n_trials=count,
                store=work / f"store {name}",
            )
            result.save_pretrained(work / f"result {name}")
            first = result if name == "gauss_newton" else first
            path.write_text(json.dumps(record(result, model, sides["test"])))
        records[name] = json.loads(path.read_text())
    return records


def record(result: SearchResult, model: Any, test: dict[str, list[Window]]) -> dict[str, Any]:
    """What a method found, and what that and the obvious points are worth on test text."""
    count = len(result.coefficients)
    points = {"found": result.best.coefficients, "base": (0.0,) * count, "1/N": (1 / count,) * count}
    losses = {}
    for label, point in points.items():
        model.dem.set_coefficients(dict(zip(model.dem.coefficients, point, strict=True)))
        scores = evaluate(model, test)
        losses[label] = sum(score.loss for score in scores.values()) / len(scores)
    trials = [{"coefficients": trial.coefficients, "value": trial.value} for trial in result.trials]
    return {
        "num_forward": result.num_forward,
        "seconds": result.seconds,
        "trials": trials,
        "best": trials[result.trials.index(result.best)],
        "test": losses,
    }


def report(records: dict[str, Any]) -> list[str]:
    """Print the table; returns what was promised and did not hold."""
    grid = records.get(GRID)
    target = grid["best"]["value"] if grid else float("nan")
    print("| method | coefficients | forward passes | to the grid's best | validation loss | test loss |\n|---|---|---|---|---|---|")
    for name, entry in records.items():
        best = entry["best"]
        point = ", ".join(f"{value:.3f}" for value in best["coefficients"])
        total = entry["num_forward"]
        reached = (
            (f"{total:g}" if best["value"] <= target else "never")
            if name == "gauss_newton"
            else forwards_to(entry["trials"], target, total)
        )
        print(f"| {name} | {point} | {total:g} | {reached} | {best['value']:.4f} | {entry['test']['found']:.4f} |")
    some = next(iter(records.values()))["test"]
    print(f"| base | 0 | | | | {some['base']:.4f} |\n| 1/N | | | | | {some['1/N']:.4f} |")
    faults = []
    count = len(next(iter(records.values()))["best"]["coefficients"])
    for name, most in (("gauss_newton", 12 if count <= 4 else 2 * count + 4), ("quadratic", 25)):
        if grid and name in records:
            entry = records[name]
            if entry["num_forward"] > most + 1e-9 or entry["best"]["value"] > target:
                faults.append(
                    f"{name}: {entry['num_forward']:g} forward passes (at most {most}), loss {entry['best']['value']:.4f} (grid {target:.4f})"
                )
    if {"gauss_newton", "uniform"} <= set(records):
        found, others = records["gauss_newton"]["test"]["found"], (some["1/N"], records["uniform"]["test"]["found"])
        if found >= min(others):
            faults.append(
                f"gauss_newton: test loss {found:.4f} is no better than 1/N or one coefficient ({others[0]:.4f}, {others[1]:.4f})"
            )
    return faults


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="what benchmarks/finetunes.py made")
    parser.add_argument("names", nargs="+", help="distributions")
    parser.add_argument("--tokens", type=int, default=2_000, help="of each distribution, for validation and again for test (default 2000)")
    parser.add_argument("--methods", nargs="+", default=list(methods(None, None)), help="default: all")
    parser.add_argument("--grid-best", type=int, help="score so many points of the grid only")
    parser.add_argument("--threads", type=int, default=2, help="of the processor (default 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    faults = report(run(options.folder.resolve(), options.names, options.tokens, options.methods, options.grid_best))
    sys.exit("\n".join(faults) if faults else 0)


if __name__ == "__main__":
    main()
