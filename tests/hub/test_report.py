"""Reports: the same in a terminal and in a notebook, and harmless in both."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from dem_hub import DEMModel, DistributionVector, VectorStore
from dem_hub.checkpoints.opening import open_base
from dem_hub.files.names import MODEL_FILES
from dem_hub.hub.download import resolve
from dem_hub.hub.references import VectorSource
from dem_hub.hub.report import Report, Table, wrapped
from dem_hub.vectors.comparison import compare
from tests.support.tiny_models import Zoo

BAD = "<img src=x onerror=alert(1)>$x$\x1b[2J\u202e&amp;"


def test_text_of_others_is_harmless() -> None:
    report = Report(BAD, (Table((BAD, "n"), ((BAD, BAD),)), (BAD, f"{BAD}\n{BAD}")))
    root = ElementTree.fromstring(report.html())
    assert "mathjax_ignore" in root.attrib["class"]
    assert not list(root.iter("img"))
    shown = [element.text for element in root.iter() if element.text]
    assert len(shown) == 7
    for text in [*shown, *report.text().splitlines()]:
        assert text.isprintable()
    assert BAD not in report.text()
    assert all("<img src=x onerror=alert(1)>$x$\\x1b[2J\\u202e&amp;" in text for text in shown if text != "n")


def test_a_table_with_no_rows() -> None:
    assert Table(("vector", "coefficient"), ()).text() == "vector  coefficient"
    assert len(ElementTree.fromstring(Table(("a", "b"), ()).html())) == 1


@pytest.fixture
def things(zoo: Zoo, tmp_path: Path) -> dict[str, tuple[Any, list[str]]]:
    """Everything that a notebook shows as a table, with cells that the table must have."""
    folder = zoo.vector("llama-tied", "bfloat16", "lossy")
    base = zoo.models("llama-tied").base
    vector = DistributionVector.from_pretrained(folder)
    adapter = DistributionVector.from_pretrained(zoo.adapter("gpt2"))
    store = VectorStore.create(tmp_path / "store", base)
    store.add("maths", vector)
    recipe = DEMModel.from_pretrained(base, vectors={str(folder): 0.25}).dem.config
    opened = open_base(resolve(VectorSource.parse(base), MODEL_FILES))
    return {
        "vector": (vector, ["model.layers.0", "dense+lowrank"]),
        "adapter": (adapter, ["rank"]),
        "store": (store, ["maths", vector.codec]),
        "recipe": (recipe, [str(folder), "+0.2500"]),
        "comparison": (compare([vector, vector], opened), ["1.0000", f"[1] {folder}"]),
    }


def test_notebooks_show_tables(things: dict[str, tuple[Any, list[str]]]) -> None:
    for thing, expected in things.values():
        root = ElementTree.fromstring(thing._repr_html_())
        cells = [cell.text for cell in root.iter() if cell.tag in ("td", "th")]
        assert set(expected) <= set(cells)


@pytest.mark.parametrize("is_terminal", [True, False])
def test_lines_for_a_terminal_end_between_words(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal)
    monkeypatch.setenv("COLUMNS", "24")
    text = "\nOne sentence of a message.\nA-path/that-is-longer-than-a-line.json"
    broken = "\nOne sentence of a\nmessage.\nA-path/that-is-longer-than-a-line.json"
    assert wrapped(text) == (broken if is_terminal else text)
