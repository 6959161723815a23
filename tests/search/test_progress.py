"""What a search says while it runs: on a terminal, in a log file, and when it is stopped."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from dem_hub import SearchResult, search_coefficients
from dem_hub.cli.app import main
from dem_hub.search import progress
from dem_hub.search.measure import loss_evaluator
from tests.support.counting_models import Counters

FEW = {"up": 8, "down": 6}  # rows of each distribution


class Screen(io.StringIO):
    """A stderr that is a terminal or a file."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Switch bars on, which the tests have off, and return those of searches that were closed."""
    from huggingface_hub.utils import tqdm

    closed: list[Any] = []
    close = tqdm.close

    def kept(bar: Any) -> None:
        if not bar.disable and bar not in closed and "{postfix}" in str(bar.bar_format):
            closed.append(bar)
        close(bar)

    module = sys.modules[tqdm.__module__]
    monkeypatch.setattr(module, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr(module, "progress_bar_states", {})  # other libraries switch bars off for good
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", None)
    monkeypatch.setattr(tqdm, "close", kept)
    return closed


@pytest.fixture
def small(search: Callable[..., SearchResult], counters: Counters) -> Callable[..., SearchResult]:
    """A search of two vectors on a few rows."""

    def run(**options: Any) -> SearchResult:
        data = {name: counters.data[name][:rows] for name, rows in FEW.items()}
        return search(*FEW, data=data, batch_size=2, **options)

    return run


def work(result: SearchResult) -> float:
    """Return the tokens that a search has paid for: 10 rows of 20 tokens are searched on, and 4 are held out."""
    return result.num_forward * 200 + result.num_forward_held_out * 80


@pytest.mark.parametrize("method", ["gauss_newton", "gradient", "uniform"])
def test_one_bar_on_a_terminal(
    small: Callable[..., SearchResult], bars: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, method: str
) -> None:
    """It ends at its end, and has advanced by what was paid for; also where that comes from a cache."""
    for _ in range(2):
        screen = Screen(terminal=True)
        monkeypatch.setattr(sys, "stderr", screen)
        bars.clear()
        result = small(method=method, cache=tmp_path, max_forward=6)
        (bar,) = bars
        assert bar.n == bar.total == pytest.approx(work(result))
    assert bar.initial == bar.n  # nothing of it is taken for speed
    text = screen.getvalue()
    assert text.startswith("Resumed: ") or "\rResumed: " in text or "\nResumed: " in text
    # The terminal's lines end between words.
    assert f"measurements of this search are known from '{tmp_path}'." in text.replace("\n", " ")


def test_lines_in_a_log_file(
    small: Callable[..., SearchResult], bars: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outline, then lines with the step, the remaining time and the best value; no control characters."""
    monkeypatch.setattr(progress, "_LINE_SECONDS", 1e-9)
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal=False))
    result = small()
    assert len(bars) == 1
    lines = screen.getvalue().splitlines()
    assert lines[0].startswith(
        "Search for 2 coefficients with gauss_newton: at most 12 forward passes over 200 tokens of up, down, then some 10 "
        "over 80 held-out tokens, and one more if a baseline is better. Beside the model, logits take "
    )
    steps = [line.partition(":")[0] for line in lines[1:]]
    for step in ("base on up", "up alone on down", "down alone on down", "slopes of the losses at the first guess", "mixture 1 on held-out up",
                 "base on held-out up"):  # fmt: skip
        assert step in steps, steps
    assert " s a pass" in lines[-1]
    assert f"best mean {min(trial.value for trial in result.trials):.4f}" in lines[-1]
    assert all(line.isprintable() for line in lines)


def test_a_score_in_its_own_words(counters: Counters, bars: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_SECONDS", 1e-9)
    monkeypatch.setattr(sys, "stderr", screen := Screen(terminal=False))

    def accuracy(model: Any) -> float:
        return next(iter(model.dem.coefficients.values())) / 2

    search_coefficients(counters.base, [counters.vectors["up"]], score=accuracy, method="uniform", max_forward=4)
    (bar,) = bars
    assert bar.n == bar.total == 4
    lines = screen.getvalue().splitlines()
    assert lines[0] == "Search for 1 coefficient with uniform: at most 4 calls of accuracy."
    assert "best accuracy 0.75" in lines[-1]


def test_ctrl_c(
    counters: Counters,
    bars: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, with what is kept and how to go on; the next run says that it goes on."""
    command = ["search", str(counters.base), "-o", str(tmp_path / "found"), "--method", "uniform", "--max-forward", "3"]
    for name, rows in FEW.items():
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps({"input_ids": row}) + "\n" for row in counters.data[name][:rows]))
        command += ["--vector", counters.vectors[name], "--data", f"{name}={file}"]
    calls = []

    def stopped(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return totals(*arguments)

    totals = loss_evaluator.totals
    for kept in ([], ["--cache", str(tmp_path / "cache")]):
        calls.clear()
        with monkeypatch.context() as context:
            context.setattr(loss_evaluator, "totals", stopped)
            assert main([*command, *kept]) == 130
        last = capsys.readouterr().err.splitlines()[-1]
        if kept:
            assert last == (
                f"dem-hub search: stopped by Ctrl-C. 3 measurements are kept in '{tmp_path / 'cache'}': the same search goes on "
                "from there."
            )
        else:
            assert last.startswith("dem-hub search: stopped by Ctrl-C. Nothing is kept. With cache='FOLDER'")
        assert not (tmp_path / "found").exists()
    assert main([*command, *kept]) == 0
    assert f"Resumed: 3 measurements of this search are known from '{tmp_path / 'cache'}'." in capsys.readouterr().err
