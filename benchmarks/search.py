"""The coefficient search on real fine-tunes: the result of each method, its forward passes, and its loss on test
text.

    python benchmarks/finetunes.py finetunes
    python benchmarks/search.py finetunes gsm code reference                 # 125 points of a grid, and everything else
    python benchmarks/search.py finetunes gsm code reference tasks --grid-best 60
    python benchmarks/search.py finetunes gsm code reference --tokens 1000 --methods gauss_newton group block

Every method gets the same validation tokens and counts its own passes. Its best point is scored on test text from
other documents. If a grid is too large, `--grid-best` scores only that many of its points: those that are best by the
statistics of `gauss_newton`. `group` and `block` run `gauss_newton` and then search coefficients for groups of
tensors, which are accepted on as many further validation tokens. Finished methods are kept in the folder, and an
interrupted run continues. After runs with several `--tokens`, a second table says how many validation tokens
`gauss_newton` needs to be better on test text than 1/N and one common coefficient.

The script exits with an error if `gauss_newton` or `quadratic` needs more forward passes than promised or is worse
than the grid's best point, or if the result of `gauss_newton` is not better than 1/N and the best common coefficient
on test text.
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
from dem_hub.evaluation.likelihood import evaluate
from dem_hub.evaluation.windows import Window
from dem_hub.models.loading import DEMModel
from dem_hub.search import GaussNewton, Grid, Optuna, SearchResult, Strategy, TrustRegion, Uniform
from dem_hub.search.per_group import ERRORS
from dem_hub.search.problem import Problem
from dem_hub.search.records import to_json

VALUES = (0.0, 0.25, 0.5, 0.75, 1.0)
WINDOW = 256  # tokens
N_TRIALS = 40  # trials of each of Optuna's samplers
TEST_TOKENS = (
    2_000  # of each distribution, at the least: with fewer, one cannot tell what few validation tokens are worth
)
GRID = "grid"
GROUPS = ("group", "block")


@dataclass(frozen=True)
class Shortlist:
    """A method that scores the given points."""

    points: tuple[tuple[float, ...], ...]
    name: str = GRID

    def search(self, problem: Problem) -> None:
        """Score the points."""
        for point in self.points:
            problem.evaluate(point)


def windows(tokenizer: Any, path: Path, tokens: int) -> list[Window]:
    """Return windows from the beginnings of as many documents as needed."""
    found: list[Window] = []
    for number, line in enumerate(path.read_text("utf-8").splitlines()):
        ids = tuple(tokenizer(json.loads(line)["text"])["input_ids"][:WINDOW])
        if len(ids) > 1:
            found.append(Window(ids, ids, number))
        if sum(len(window.input_ids) for window in found) >= tokens:
            break
    return found


def after(tokenizer: Any, folder: Path, names: Sequence[str], tokens: int) -> dict[str, list[Window]]:
    """Return as many validation tokens again, from the documents after those of the search."""
    found = {}
    for name in names:
        path = folder / "texts" / f"{name}.validation.jsonl"
        first, both = (windows(tokenizer, path, count) for count in (tokens, 2 * tokens))
        found[name] = both[len(first) :]
    return found


def methods(grid_best: int | None, first: SearchResult | None) -> dict[str, Strategy]:
    """Return the methods by name, the grid last."""
    found: dict[str, Strategy] = {
        "gauss_newton": GaussNewton(),
        "quadratic": TrustRegion(),
        "uniform": Uniform(),
        **{f"optuna {name}": Optuna(name) for name in ("gp", "tpe", "cmaes")},
        **{name: GaussNewton() for name in GROUPS},
        GRID: Grid(VALUES),
    }
    if grid_best is not None and first is not None and first.model is not None:
        points = list(product(VALUES, repeat=len(first.coefficients)))
        model = first.model
        points.sort(key=lambda point: first.objective.value(model.losses(point)))
        found[GRID] = Shortlist(tuple(points[:grid_best]))
    return found


def forwards_to(trials: Sequence[dict[str, Any]], target: float, total: float) -> str:
    """Return the number of forward passes until a loss was reached, if every trial is one pass."""
    reached = [number for number, trial in enumerate(trials, 1) if trial["value"] <= target]
    return f"{min(reached[0], total):g}" if reached else "never"


def run(
    folder: Path, output: Path, names: Sequence[str], tokens: int, wanted: Sequence[str], grid_best: int | None
) -> dict[str, Any]:
    """Run every method that has no record yet, and return the records by method."""
    base, work = folder / "base", output / f"{'-'.join(names)}-{tokens}"
    vectors = [folder / "vectors" / name for name in names]
    for name, vector in zip(names, vectors, strict=True):
        if not vector.is_dir():
            DistributionVector.extract(base, folder / "full" / name).save_pretrained(vector)
    tokenizer = AutoTokenizer.from_pretrained(base)
    counts = {"validation": tokens, "test": max(tokens, TEST_TOKENS)}
    sides = {
        side: {name: windows(tokenizer, folder / "texts" / f"{name}.{side}.jsonl", count) for name in names}
        for side, count in counts.items()
    }
    work.mkdir(parents=True, exist_ok=True)
    scores = output / f"{'-'.join(names)} test {counts['test']}.json"
    records: dict[str, Any] = {}
    model = DEMModel.from_pretrained(base, vectors={str(vector): 0.0 for vector in vectors}, dtype="float32")
    first = (
        SearchResult.from_pretrained(work / "result gauss_newton") if (work / "result gauss_newton").is_dir() else None
    )
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
                held_out=after(tokenizer, folder, names, tokens) if name in GROUPS else 0,
                granularity=name if name in GROUPS else "model",
                max_forward=count,
                cache=work / f"store {name}",
            )
            result.save_pretrained(work / f"result {name}", exist_ok=True)
            first = result if name == "gauss_newton" else first
            path.write_text(json.dumps(record(result, model, sides["test"], scores)))
        records[name] = json.loads(path.read_text())
    return records


def record(result: SearchResult, model: Any, test: dict[str, list[Window]], scores: Path) -> dict[str, Any]:
    """Return the result of a method, with its test loss and that of the baselines. Test losses are kept in a file."""
    names = list(model.dem.coefficients)
    points = {
        "found": dict(result.coefficients),
        "base": dict.fromkeys(names, 0.0),
        "1/N": dict.fromkeys(names, 1 / len(names)),
    }
    if result.refinement is not None:
        points |= {
            "groups": dict(result.refinement.coefficients),
            "one": dict(zip(names, result.best.coefficients, strict=True)),
        }
    known: dict[str, float] = json.loads(scores.read_text()) if scores.is_file() else {}
    for point in points.values():
        if str(point) not in known:
            model.dem.set_coefficients(point)
            known[str(point)] = sum(score.loss for score in evaluate(model, test).values()) / len(test)
            scores.write_text(json.dumps(known))
    losses = {label: known[str(point)] for label, point in points.items()}
    trials = [{"coefficients": trial.coefficients, "value": trial.value} for trial in result.trials]
    return {
        "num_forward": result.num_forward,
        "seconds": result.seconds,
        "trials": trials,
        "best": trials[result.trials.index(result.best)],
        "test": losses,
    } | ({"refinement": to_json(result.refinement)} if result.refinement is not None else {})


def report(records: dict[str, Any]) -> list[str]:
    """Print the table, and return the promises that did not hold."""
    grid = records.get(GRID)
    target = grid["best"]["value"] if grid else float("nan")
    print(
        "| method | coefficients | forward passes | to the grid's best | validation loss | test loss |\n"
        "|---|---|---|---|---|---|"
    )
    for name, entry in records.items():
        best = entry["best"]
        point = ", ".join(f"{value:.3f}" for value in best["coefficients"])
        total = entry["num_forward"]
        reached = (
            (f"{total:g}" if best["value"] <= target else "never")
            if name in ("gauss_newton", *GROUPS)
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
                    f"{name}: {entry['num_forward']:g} forward passes (at most {most}), loss "
                    f"{entry['best']['value']:.4f} (grid {target:.4f})"
                )
    if {"gauss_newton", "uniform"} <= set(records):
        found, others = records["gauss_newton"]["test"]["found"], (some["1/N"], records["uniform"]["test"]["found"])
        if found >= min(others):
            faults.append(
                f"gauss_newton: test loss {found:.4f} is no better than 1/N or one coefficient ({others[0]:.4f}, "
                f"{others[1]:.4f})"
            )
    return faults


def report_groups(records: dict[str, Any]) -> None:
    """Print the results of coefficients for groups, and whether they were kept."""
    found = {name: entry for name, entry in records.items() if "refinement" in entry}
    if found:
        print(
            "\n| coefficients | number | more forward passes | validation loss | held out: gain (error) | test loss |\n"
            "|---|---|---|---|---|---|"
        )
    for name, entry in found.items():
        refined = entry["refinement"]
        (one,) = [contender for label, contender in refined["acceptance"]["contenders"].items() if label != "found"]
        print(
            f"| one a vector | {len(entry['best']['coefficients'])} | 0 | {entry['best']['value']:.4f} | | "
            f"{entry['test']['one']:.4f} |"
        )
        gain = f"{one['difference']:.4f} ({one['error']:.4f}), {'kept' if one['difference'] > ERRORS * one['error'] else 'not kept'}"
        print(
            f"| by {name} | {len(refined['coordinates'])} | {refined['num_forward']:g} | "
            f"{refined['best']['value']:.4f} | {gain} | {entry['test']['groups']:.4f} |"
        )


def report_tokens(output: Path, names: Sequence[str]) -> None:
    """Print how many validation tokens `gauss_newton` needs to be better on test text than 1/N and one common
    coefficient.
    """
    runs, stem = {}, f"{'-'.join(names)}-"
    for folder in output.glob(f"{stem}*"):
        paths = {name: folder / f"{name}.json" for name in ("gauss_newton", "uniform")}
        if folder.name.removeprefix(stem).isdigit() and paths["gauss_newton"].is_file():
            tests = {name: json.loads(path.read_text())["test"] for name, path in paths.items() if path.is_file()}
            common = tests["uniform"]["found"] if "uniform" in tests else None
            runs[int(folder.name.removeprefix(stem))] = (
                tests["gauss_newton"]["found"],
                tests["gauss_newton"]["1/N"],
                common,
            )
    if len(runs) < 2:
        return
    print(
        "\n| validation tokens a distribution | gauss_newton, test loss | 1/N | one coefficient | better |\n"
        "|---|---|---|---|---|"
    )
    needed = None
    for tokens, (found, share, common) in sorted(runs.items()):
        if common is None:
            print(f"| {tokens} | {found:.4f} | {share:.4f} | not run | {'than 1/N' if found < share else 'no'} |")
            continue
        better = found < min(share, common)
        needed = (needed or tokens) if better else None  # from here on, at all that were tried
        print(f"| {tokens} | {found:.4f} | {share:.4f} | {common:.4f} | {'than both' if better else 'no'} |")
    whole = sorted(tokens for tokens, (_, _, common) in runs.items() if common is not None)
    if whole:
        fewest = (
            f"more than {whole[-1]}" if needed is None else f"{needed} or fewer" if needed == whole[0] else str(needed)
        )
        print(f"\ntokens needed: {fewest} (tried: {', '.join(map(str, whole))})")


def main() -> None:
    """Run the methods, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="folder made by benchmarks/finetunes.py")
    parser.add_argument("names", nargs="+", help="distributions")
    parser.add_argument(
        "--tokens",
        type=int,
        default=2_000,
        help="of each distribution, for validation and, from 2000 on, for test (default 2000)",
    )
    usual = [name for name in methods(None, None) if name not in GROUPS]
    parser.add_argument("--methods", nargs="+", default=usual, help="methods to run (default: all but group and block)")
    parser.add_argument("--output", type=Path, help="folder that keeps the runs (default: `search` in the folder)")
    parser.add_argument("--grid-best", type=int, help="score only this many points of the grid")
    parser.add_argument("--threads", type=int, default=2, help="number of threads (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folder = options.folder.resolve()
    output = (options.output or folder / "search").resolve()
    records = run(folder, output, options.names, options.tokens, options.methods, options.grid_best)
    faults = report(records)
    report_groups(records)
    report_tokens(output, options.names)
    sys.exit("\n".join(faults) if faults else 0)


if __name__ == "__main__":
    main()
