"""What the page says of where the sliders stand: the table, the note and the landscape."""

import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any, Literal
from xml.etree import ElementTree

import pytest
import torch

from dem_hub import DEMModel, SearchResult, search_coefficients
from dem_hub.mixer.mixer import Mixer
from dem_hub.mixer.opening import Measuring, open_mixer
from dem_hub.mixer.presets import WORST
from dem_hub.mixer.tables import LossRow, loss_table
from dem_hub.mixer.view import STEP, Tab, mixture_at, slider_range, text_of, view_of
from dem_hub.search.prediction import Expected
from tests.support.counting_models import Counters


class Cells(HTMLParser):
    """The rows of a table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.feed(text.partition("</table>")[0])

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.rows[-1][-1] += data


def test_sliders_within_a_step_of_a_preset_are_the_preset(mixer: Mixer, result: SearchResult) -> None:
    found = tuple(result.coefficients.values())
    rounded = tuple(round(value / STEP) * STEP for value in found)
    assert mixture_at(mixer, Tab(rounded)).coefficients == found
    assert mixture_at(mixer, Tab(rounded)).label == "DEM"
    moved = (rounded[0] + STEP, *rounded[1:])
    assert mixture_at(mixer, Tab(moved)).coefficients == moved
    assert mixture_at(mixer, Tab(moved)).label is None
    assert mixture_at(mixer, Tab(moved, aside=(0,))).coefficients == (0.0, *rounded[1:])


def test_a_tab_that_does_not_know_of_a_vector_leaves_it_out(mixer: Mixer) -> None:
    tab = Tab.read(mixer, [0, 1], 0, 1, 0.5, 0.25, 0.125, 0.0, 0.0)
    assert tab == Tab((0.5, 0.25, 0.125), (2,), (0, 1))
    assert Tab.read(mixer, [], 0, 0, 0.5, 0.25, 0.125).axes is None
    assert text_of(mixer, mixture_at(mixer, tab)) == "base + 0.500 up + 0.250 down"


def test_the_table_of_a_search(mixer: Mixer, result: SearchResult) -> None:
    values = (0.5, 0.25, 0.125)
    head, *rows = Cells(view_of(mixer, Tab(values)).table).rows
    assert head == ["loss, nats a token", "base", "expected", "may be off by", "measured"]
    assert [row[0] for row in rows] == ["up", "down", "threes", "mean"]
    assert mixer.prediction is not None
    for row in rows[:-1]:
        base, expected = mixer.prediction.base_losses[row[0]], mixer.prediction.losses(values)[row[0]]
        mark = "▼" if expected.loss < base else "▲"
        assert row[1] == f"{base:.4f}"
        assert row[2] == f"{expected.loss:.4f} {mark} {abs(expected.loss - base):.4f}"
        assert row[3] == f"±{expected.error:.4f}"
        assert row[4] == "-"
    assert rows[-1][1] == f"{fmean(mixer.prediction.base_losses.values()):.4f}"
    assert rows[-1][4] == "-"
    measured = mixer.measure(values)
    rows = Cells(view_of(mixer, Tab(values)).table).rows[1:]
    assert [row[4].split()[0] for row in rows[:-1]] == [f"{loss:.4f}" for loss in measured.values()]
    assert rows[-1][4].split()[0] == f"{fmean(measured.values()):.4f}"


def test_data_that_are_not_those_of_the_search(found: Path, counters: Counters, tmp_path: Path) -> None:
    """A loss is compared with the base's on the same data, and the page says that the two are not alike."""
    data = {name: rows[:2] for name, rows in counters.test.items()}
    mixer = open_mixer(str(found), measuring=Measuring(data), output=tmp_path, dtype="float32")
    values = (0.5, 0.25, 0.125)
    assert "measures otherwise" not in view_of(mixer, Tab(values)).note
    base, measured = mixer.measure(mixer.base), mixer.measure(values)
    view = view_of(mixer, Tab(values))
    assert "measures otherwise" in view.note
    assert mixer.prediction is not None
    _, *rows = Cells(view.table).rows
    for row in rows[:-1]:
        searched, expected = mixer.prediction.base_losses[row[0]], mixer.prediction.losses(values)[row[0]].loss
        assert row[1] == f"{searched:.4f}"
        assert row[2].split()[2] == f"{abs(expected - searched):.4f}"
        assert row[4].split()[2] == f"{abs(measured[row[0]] - base[row[0]]):.4f}"


def test_far_from_what_was_found_the_page_says_so(mixer: Mixer, result: SearchResult) -> None:
    near = view_of(mixer, Tab(tuple(result.coefficients.values())))
    far = view_of(mixer, Tab((1.5, 1.5, 1.5)))
    assert "rough" not in near.note
    assert "rough" in far.note
    assert 'class="unsure"' not in near.table
    assert 'class="unsure"' in far.table


def test_without_a_search_and_without_data(plain: Mixer) -> None:
    view = view_of(plain, Tab((0.25, 0.5)))
    assert view.label == "recipe"
    assert view.note.startswith("**recipe**: base + 0.250 up + 0.500 down")
    assert "There is no search" in view.note
    assert "--data NAME=FILE" in view.note
    assert not view.table
    assert not view.landscape


def test_groups_of_tensors_stay_until_a_slider_moves(counters: Counters, tmp_path) -> None:
    groups = {"attention": 0.2, "rest": 0.4}
    DEMModel.from_pretrained(counters.base, vectors={counters.vectors["up"]: groups}).dem.save_pretrained(tmp_path)
    mixer = open_mixer(str(tmp_path), output=tmp_path / "out")
    assert mixture_at(mixer, Tab((0.3,))).coefficients == (groups,)
    assert "for each group" in view_of(mixer, Tab((0.3,))).note
    assert mixture_at(mixer, Tab((0.31,))).coefficients == (0.31,)


def test_the_landscape(mixer: Mixer, result: SearchResult) -> None:
    """It is whole XML, its darkest band holds the lowest loss, and the marks are where they should be."""
    assert result.model is not None
    picture = view_of(mixer, Tab((0.5, 0.25, 0.125), axes=(0, 2))).landscape
    root = ElementTree.fromstring(picture)
    texts = [text.text for text in root.iter("text")]
    assert {"up →", "threes →"} <= set(texts)
    low, high = slider_range(mixer)
    marks = {circle.get("class"): circle for circle in root.iter("circle")}
    ticks = [text for text in root.iter("text") if text.get("text-anchor") == "middle"]
    left, right = float(ticks[0].get("x", 0)), float(ticks[2].get("x", 0))
    assert float(marks["now"].get("cx", 0)) == pytest.approx(
        left + (right - left) * (0.5 - low) / (high - low), abs=0.1
    )
    assert float(marks["found"].get("cx", 0)) == pytest.approx(
        left + (right - left) * (result.best.coefficients[0] - low) / (high - low), abs=0.1
    )
    assert set(marks) == {"trial", "found", "now"}
    # The number of cells of all bands is that of the picture.
    cells = 0.0
    for path in root.iter("path"):
        cells += sum(float(width) for width in re.findall(r"h(\d[\d.]*)v", path.get("d", "")))
    assert cells / (right - left) == pytest.approx(60)


def test_a_landscape_needs_two_vectors(mixer: Mixer) -> None:
    assert not view_of(mixer, Tab((0.5, 0.25, 0.125))).landscape


@pytest.mark.parametrize("label", ["<script>alert(1)</script>", "a&b", "line\nfeed"])
def test_names_are_shown_as_text(label: str) -> None:
    table = loss_table([LossRow(label, 1.0, Expected(0.5, None), measured=0.25)])
    assert Cells(table).rows[1][0] == label.replace("\n", "\\n")
    assert "<script" not in table
    assert "not known" in table


def test_the_range_of_sliders(mixer: Mixer, plain: Mixer, result: SearchResult) -> None:
    assert slider_range(mixer) == (0.0, 1.5)
    mixer.opening = replace(mixer.opening, result=replace(result, bounds=((-0.5, 2.0), (0.0, 1.0), (0.0, 1.0))))
    assert slider_range(mixer) == (-0.5, 2.0)
    mixer.opening = replace(mixer.opening, result=replace(result, bounds=((-0.50001, 2.00001), (0.0, 1.1), (0.0, 1.0))))
    assert slider_range(mixer) == (-0.501, 2.001)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_a_score_has_its_own_name_and_sign(
    counters: Counters, tmp_path: Path, direction: Literal["maximize", "minimize"]
) -> None:
    """The page shows what the function itself says of the base and of what was found, and which way is better."""
    ids = torch.tensor(counters.data["up"])

    @torch.no_grad()
    def fitness(model: Any) -> float:
        loss = model(input_ids=ids, labels=ids).loss.item()
        return 5 - loss if direction == "maximize" else loss

    vectors = [counters.vectors["up"], counters.vectors["down"]]
    found = search_coefficients(counters.base, vectors, score=fitness, direction=direction, max_forward=14)
    found.save_pretrained(tmp_path / "found")
    mixer = open_mixer(str(tmp_path / "found"), output=tmp_path, dtype="float32")
    assert WORST not in [preset.label for preset in mixer.presets()]
    best = tuple(found.coefficients.values())
    own = {}
    for name, point in {"base": mixer.base, "found": best}.items():
        mixer.merge(point)
        own[name] = fitness(mixer.model)
    view = view_of(mixer, Tab(best, axes=(0, 1)))
    head, row = Cells(view.table).rows
    assert (head[0], row[0]) == ("score", "fitness")
    assert float(row[1]) == pytest.approx(own["base"], abs=1e-4)
    value, mark, gain = row[2].split()
    assert float(value) == pytest.approx(own["found"], abs=1e-4)
    assert float(gain) == pytest.approx(abs(own["found"] - own["base"]), abs=1e-4)
    better = {"maximize": "higher", "minimize": "lower"}[direction]
    assert mark == {"higher": "▲", "lower": "▼"}[better]
    assert 'class="better"' in view.table
    assert f"fitness: {better} is better." in view.table
    title = next(
        text.text or "" for text in ElementTree.fromstring(view.landscape).iter("text") if "dark" in str(text.text)
    )
    best_band, worst_band = map(float, re.findall(r"-?[\d.]+(?= \()", title))
    assert title.startswith("expected fitness: ")
    assert best_band > worst_band if direction == "maximize" else best_band < worst_band
    assert "loss" not in f"{head} {row} {title}"


def test_data_without_a_search(open_found: Callable[..., Mixer]) -> None:
    """A distribution that the search did not have is measured, and nothing is expected of it."""
    mixer = open_found("up")
    mixer.measure((0.5, 0.0, 0.0))
    rows = {row[0]: row for row in Cells(view_of(mixer, Tab((0.5, 0.0, 0.0))).table).rows[1:]}
    assert rows["up"][4] != "-"
    assert rows["down"][4] == "-"
