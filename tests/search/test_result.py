"""The result of a search: printed, saved and read again, solved for other objectives, drawn."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from dem_hub import DEMModel, SearchResult
from dem_hub.errors import CoefficientError, ConfigError, NotFoundError
from dem_hub.search.solve.local_model import LocalModel, Quadratic
from dem_hub.search.solve.objective import Objective
from tests.support.counting_models import Counters
from tests.support.fresh_losses import fresh


def test_printed(result: SearchResult) -> None:
    """As the shell does: the tables, each figure in them, what held-out data said, every note, and what comes next."""
    parts = str(result).split("\n\n")
    assert parts[0] == f"Search on {result.config.base}"
    coefficients, table, held_out = (part.splitlines() for part in parts[1:4])
    names = ["up", "down", "threes"]
    assert [line.split()[:2] for line in coefficients[1:]] == [
        [name, f"{value:+.4f}"] for name, value in zip(names, result.coefficients.values(), strict=True)
    ]
    rows = [re.split("  +", line) for line in table[1:]]
    assert [row[0] for row in rows] == ["DEM", "base", *(f"{name} alone" for name in names)]
    assert rows[0][1:] == [f"{loss:.4f}" for loss in result.best.losses.values()]
    assert result.table is not None
    for line, cells in zip(table[2:], result.table.cells.values(), strict=True):
        assert re.findall(r"[\d.]+", line) == [
            f"{number:.4f}" for cell in cells.values() for number in vars(cell).values()
        ]
    assert result.acceptance is not None
    labels = [
        label.replace(str(Path(name).parent) + "/", "")
        for label in result.acceptance.contenders
        for name in [next(iter(result.coefficients))]
    ]
    # Whoever sees the table for the first time knows no labels of files.
    labels = [{"found": "DEM", "common": "best common coefficient"}.get(label, label) for label in labels]
    assert [re.split("  +", line)[0] for line in held_out[1:]] == labels
    for line, contender in zip(held_out[1:], result.acceptance.contenders.values(), strict=True):
        assert all(f"{loss:.4f}" in line for loss in [*contender.losses.values(), contender.value])
        compared = f"{contender.difference:+.4f} ({contender.error:.4f})"
        assert line.endswith(compared) == (contender is not result.acceptance.contenders["found"])
    assert parts[4].startswith(
        f"{result.method}: {len(result.trials)} trials, {result.num_forward:.4g} forward passes over"
    )
    assert all(note in str(result) for note in result.notes)
    assert parts[-1].startswith("Next: ")


def test_what_was_found_is_shown_also_where_a_baseline_is_returned(result: SearchResult) -> None:
    assert result.acceptance is not None
    base = next(trial for trial in result.trials if not any(trial.coefficients))
    replaced = replace(result, best=base, acceptance=replace(result.acceptance, chosen="base"))
    assert str(replaced).split("\n\n")[2] == str(result).split("\n\n")[2]


def test_shown_in_a_notebook(result: SearchResult) -> None:
    """The same cells as in the printed text, and no markup of others."""
    risky = replace(result, notes=("<script>alert(1)</script>\x1b[2J",))
    page = risky._repr_html_()
    root = ElementTree.fromstring(page)
    cells = [cell.text for cell in root.iter() if cell.tag in ("td", "th")]
    assert len(cells) > 30
    printed = str(risky)
    assert all(cell in printed for cell in cells if cell)
    assert "<script>" not in page
    assert "\x1b" not in page


def test_saved_and_read_again(result: SearchResult, tmp_path: Path) -> None:
    result.save_pretrained(tmp_path / "found")
    again = SearchResult.from_pretrained(tmp_path / "found")
    assert again.model is not None
    assert result.model is not None
    assert again.reweight("worst") == result.reweight("worst")
    assert replace(again, model=None) == replace(result, model=None)
    assert len(again.cache) == len(result.cache)
    assert DEMModel.from_pretrained(tmp_path / "found").dem.coefficients == result.coefficients
    json.loads((tmp_path / "found" / "search_result.json").read_text())


def test_a_result_is_replaced_only_if_told_so(result: SearchResult, tmp_path: Path) -> None:
    result.config.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"holds a recipe already\. Choose another folder, .* exist_ok=True"):
        result.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="holds a recipe already"):
        result.config.save_pretrained(tmp_path, exist_ok=False)
    result.save_pretrained(tmp_path, exist_ok=True)
    assert SearchResult.from_pretrained(tmp_path).config.coefficients == result.config.coefficients


def test_no_result_to_read(tmp_path: Path, result: SearchResult) -> None:
    with pytest.raises(NotFoundError, match="has no search_result.json") as caught:
        SearchResult.from_pretrained(tmp_path)
    assert caught.type is NotFoundError
    result.save_pretrained(tmp_path)
    path = tmp_path / "search_result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(ConfigError, match="Upgrade"):
        SearchResult.from_pretrained(tmp_path)
    path.write_text(json.dumps({"format_version": 1, "trials": []}))
    with pytest.raises(ConfigError, match="is not a whole search result"):
        SearchResult.from_pretrained(tmp_path)


def _shorten_bounds(data: dict[str, Any]) -> None:
    data["bounds"].pop()


def _choose_what_is_not_there(data: dict[str, Any]) -> None:
    data["acceptance"]["chosen"] = "other"


def _drop_a_row(data: dict[str, Any]) -> None:
    next(iter(data["model"]["parts"].values()))["curvature"].pop()


def _forget_a_name(data: dict[str, Any]) -> None:
    data["model"]["names"].pop()


@pytest.mark.parametrize("change", [_shorten_bounds, _choose_what_is_not_there, _drop_a_row, _forget_a_name])
def test_parts_that_do_not_fit_are_refused(
    result: SearchResult, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    result.save_pretrained(tmp_path)
    path = tmp_path / "search_result.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="is not a whole search result"):
        SearchResult.from_pretrained(tmp_path)


def test_reweighting_costs_nothing_and_is_true(
    counters: Counters, search: Callable[..., SearchResult], unchecked: SearchResult
) -> None:
    """What is found for other weights is nearly what a search with these weights finds, and better for them than what was found."""
    plain, weights = unchecked, {"up": 3.0}
    size = len(plain.cache)
    wished = plain.reweight(weights=weights)
    assert len(plain.cache) == size
    assert wished.config.coefficients == wished.coefficients
    objective = Objective("mean", weights)
    truth, before = (
        objective.value(fresh(counters, point, counters.data)) for point in (wished.coefficients, plain.coefficients)
    )
    assert truth < before
    assert truth == pytest.approx(search(held_out=0, weights=weights).loss, abs=0.01)
    assert wished.value == pytest.approx(truth, abs=0.02)


def test_reweighting_for_other_wishes(result: SearchResult, counters: Counters) -> None:
    up, down, threes = counters.vectors.values()
    assert result.reweight().value <= result.loss + 1e-3
    gone = result.reweight(without=[os.path.relpath(down)], weights={"down": 0.0})
    assert gone.coefficients[down] == 0
    assert gone.coefficients[up] > 0
    little = result.reweight(max_sum=0.3)
    assert sum(little.coefficients.values()) <= 0.3 + 1e-9
    tight = result.reweight(bounds={threes: (0.0, 0.1)})
    assert tight.coefficients[threes] <= 0.1
    worst = result.reweight("worst")
    assert max(worst.losses.values()) <= max(result.reweight().losses.values()) + 1e-6
    with pytest.raises(CoefficientError, match="No vector of this search is called 'other'"):
        result.reweight(without=["other"])


def test_vectors_go_by_the_names_that_are_printed(result: SearchResult, counters: Counters) -> None:
    by_name = result.reweight(bounds={counters.vectors["threes"]: (0.0, 0.1)}, without=[counters.vectors["down"]])
    assert result.reweight(bounds={"threes": (0.0, 0.1)}, without=["down"]) == by_name
    assert result.config.with_coefficients({"up": 0.25}).coefficients[counters.vectors["up"]] == 0.25


def test_reweighting_without_negative_coefficients(result: SearchResult) -> None:
    """Of losses whose minimum is known, and below 0 for one vector."""
    best, matrix = torch.tensor([0.5, -0.3, 0.4], dtype=torch.float64), torch.eye(3, dtype=torch.float64)
    bowl = Quadratic(1.0 + float(best @ best) / 2, -best, matrix)
    known = replace(result, model=LocalModel(tuple(result.coefficients), (0.0, 0.0, 0.0), {"up": bowl}))
    assert list(known.reweight(bounds=(-1.0, 1.0)).coefficients.values()) == pytest.approx([0.5, -0.3, 0.4])
    assert list(known.reweight(bounds=(0.0, 1.0)).coefficients.values()) == pytest.approx([0.5, 0.0, 0.4])


def test_reweighting_for_what_is_gained(result: SearchResult) -> None:
    """Against a brute force over the same quadratics."""
    assert result.table is not None
    assert result.model is not None
    base = {name: cell.loss for name, cell in result.table.cells["base"].items()}
    gained = result.reweight("improvement")
    axis = torch.linspace(0, 1.5, 16).tolist()
    points = [(x, y, z) for x in axis for y in axis for z in axis]
    assert (
        gained.value <= min(Objective("improvement").value(result.model.losses(point), base) for point in points) + 1e-9
    )


def test_a_method_without_statistics(search: Callable[..., SearchResult]) -> None:
    found = search(method="uniform", max_forward=3)
    with pytest.raises(ConfigError, match="method='uniform' leaves no statistics"):
        found.reweight()
