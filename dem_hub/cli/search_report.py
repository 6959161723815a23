"""A search's result for people and programs: rows of tables, and JSON data."""

import math
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

from dem_hub.search.cross_loss import Cell
from dem_hub.search.held_out import FOUND
from dem_hub.search.result import SearchResult

Table = tuple[tuple[str, ...], list[tuple[str, ...]]]


def result_tables(result: SearchResult) -> list[Table]:
    """The cross-loss table, what was compared on held-out data, and the coefficients; heads and rows."""
    tables: list[Table] = []
    if result.table is not None:
        names = tuple(result.best.losses)
        cells = result.table.cells
        rows = [(_short(model), *(_with_error(row[name]) for name in names)) for model, row in cells.items()]
        tables.append((("loss, 1 of each (error)", *names), rows))
    if result.acceptance is not None:
        names = tuple(result.best.losses)
        contenders = result.acceptance.contenders
        rows = [
            (
                _short(label),
                *(f"{one.losses[name]:.4f}" for name in names),
                f"{one.value:.4f}",
                f"{one.difference:+.4f} ({one.error:.4f})",
            )
            for label, one in contenders.items()
        ]
        tables.append((("held-out loss", *names, result.objective.kind, f"minus {FOUND} (error)"), rows))
    ratio = result.mixing_ratio
    rows = []
    for name, value in result.coefficients.items():
        if isinstance(value, Mapping):
            rows += [(f"{name} [{group}]", f"{number:+.4f}", "") for group, number in value.items()]
        else:
            rows.append((name, f"{value:+.4f}", f"{ratio.get(name, 0.0):.3f}"))
    tables.append((("vector", "coefficient", "data mixing ratio"), rows))
    return tables


def cost_text(result: SearchResult) -> str:
    """How it was found, in a line."""
    trials = f"{len(result.trials)} trial{'s' if len(result.trials) != 1 else ''}"
    text = (
        f"{result.method}: {trials}, {result.num_forward:.4g} forward passes over {sum(result.tokens.values())} tokens"
    )
    if result.num_forward_held_out:
        text += f" and {result.num_forward_held_out:.4g} over the held-out ones"
    chosen = result.acceptance.chosen if result.acceptance is not None else FOUND
    text = f"{text}, {result.seconds:.1f} s; objective {result.loss:.5f}" + (
        "" if chosen == FOUND else f"; chosen: {_short(chosen)}"
    )
    return f"{text}\n{result.refinement.note()}" if result.refinement is not None else text


def result_data(result: SearchResult) -> dict[str, Any]:
    """As JSON data."""
    return {
        "coefficients": result.coefficients,
        "loss": result.loss,
        "losses": dict(result.chosen.losses),
        "held_out_loss": result.held_out_loss,
        "baselines": result.baselines,
        "chosen": result.acceptance.chosen if result.acceptance is not None else FOUND,
        "method": result.method,
        "num_forward": result.num_forward,
        "num_forward_held_out": result.num_forward_held_out,
        "seconds": result.seconds,
        "n_trials": len(result.trials),
        "tokens": dict(result.tokens),
        "mixing_ratio": result.mixing_ratio,
        "refinement": result.refinement.to_dict() if result.refinement is not None else None,
        "notes": list(result.notes),
    }


def _with_error(cell: Cell) -> str:
    """A loss and its standard error, or why there is none."""
    return f"{cell.loss:.4f} ({'one window' if math.isnan(cell.error) else f'{cell.error:.4f}'})"


def _short(label: str) -> str:
    """A path by its last part, so that a table fits."""
    path, space, word = label.rpartition(" ") if label.endswith(" alone") else (label, "", "")
    return f"{PurePath(path or label).name}{space}{word}" if "/" in label and label != "1/N" else label
