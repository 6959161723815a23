"""Each plot is written, in the format that its name says."""

from pathlib import Path

import pytest

from dem_hub.checkpoints.tensor_groups import norms_by_layer
from dem_hub.plotting import plot_norms, plot_perplexities, plot_search

TABLE = {"base": {"maths": 12.0, "chat": 20.5}, "DEM": {"maths": 9.1, "chat": 14.2}}


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_plot(tmp_path: Path, name: str, start: bytes) -> None:
    path = plot_perplexities(TABLE, tmp_path / name, "perplexity")
    assert path == tmp_path / name
    assert path.read_bytes().startswith(start)


def test_one_distribution(tmp_path: Path) -> None:
    assert plot_perplexities({"base": {"maths": 12.0}}, tmp_path / "a.png", "perplexity").stat().st_size > 1000


@pytest.mark.parametrize("before", [None, {"maths": 2.5, "chat": 3.0}])
def test_plot_search(tmp_path: Path, before: dict[str, float] | None) -> None:
    path = plot_search([3.0, float("inf"), 2.8, 2.9], before, {"maths": 2.3, "chat": 2.9}, tmp_path / "a.png")
    assert path == tmp_path / "a.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_norms(tmp_path: Path) -> None:
    path = plot_norms(
        norms_by_layer({"layers.10.a": 3.0, "layers.2.a": 3.0, "layers.2.b": 4.0, "norm": 1.0}),
        tmp_path / "n.png",
        "Norms",
    )
    assert path.read_bytes().startswith(b"\x89PNG")
