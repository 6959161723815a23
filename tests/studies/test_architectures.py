"""The pure parts of the study on other architectures: how documents are cut, which are drawn, what is counted and compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from dem_hub.errors import ConfigError
from dem_hub.evaluation.windows import Window
from studies.data_mixing.architectures import (
    Clock,
    Score,
    check_budget,
    first_windows,
    full_windows,
    interval,
    shaped,
    size_of,
    taken,
)
from studies.data_mixing.small_models import WINDOW, Kind


def words(text: str) -> dict[str, list[int]]:
    """A token a word: its number."""
    return {"input_ids": [int(word) for word in text.split()]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Documents of 2.5 windows, half a window, and 2 tokens."""
    lengths = (2 * WINDOW + WINDOW // 2, WINDOW // 2, 2)
    texts = [" ".join(str(1000 * place + token) for token in range(length)) for place, length in enumerate(lengths)]
    file = tmp_path / "some.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def test_training_takes_whole_windows(path: Path) -> None:
    tokenizer: Any = words
    found = full_windows(tokenizer, path, "mixture-of-experts", 3)
    assert [window.input_ids for window in found] == [tuple(range(WINDOW)), tuple(range(WINDOW, 2 * WINDOW))]
    halves = full_windows(tokenizer, path, "encoder-decoder", 3)
    assert [(*window.input_ids, *window.labels) for window in halves] == [window.input_ids for window in found]
    assert all(len(window.input_ids) == len(window.labels) == WINDOW // 2 for window in halves)


def test_scoring_takes_the_beginning_of_each_document(path: Path) -> None:
    tokenizer: Any = words
    found = first_windows(tokenizer, path, "mixture-of-experts", 3)
    assert [(window.document, window.input_ids[0], len(window)) for window in found] == [
        (0, 0, WINDOW),
        (1, 1000, WINDOW // 2),
    ]
    assert len(first_windows(tokenizer, path, "mixture-of-experts", 1)) == 1


@pytest.mark.parametrize(
    ("kind", "expected"), [("encoder-decoder", ((1, 2), (3, 4, 5))), ("mixture-of-experts", ((1, 2, 3, 4, 5),) * 2)]
)
def test_both_kinds_run_the_same_tokens(kind: Kind, expected: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    window = shaped(Window((1, 2, 3, 4, 5), (1, 2, 3, 4, 5), 7), kind)
    assert (window.input_ids, window.labels) == expected
    assert window.document == 7
    assert size_of(kind)(window) == 5


def test_each_window_is_drawn_before_any_again() -> None:
    windows = [Window((place,), (place,)) for place in range(5)]
    found = [window.input_ids[0] for window in taken(windows, 12)]
    assert sorted(found[:5]) == sorted(found[5:10]) == list(range(5))
    assert found[:5] != found[5:10]
    assert found == [window.input_ids[0] for window in taken(windows, 12)]
    with pytest.raises(ConfigError, match="No training document has 128 tokens"):
        taken([], 1)


def test_the_interval_is_of_the_mean_loss_over_distributions() -> None:
    """By hand: one distribution better by 1 on 1 of its 4 tokens, the other worse by 0.5 on all."""
    counts = {"some": [1, 3], "other": [2, 2]}
    ours = Score({}, 0.0, {"some": [1.0, 1.0], "other": [2.0, 2.0]})
    other = Score({}, 0.0, {"some": [2.0, 1.0], "other": [1.5, 1.5]})
    found = interval(other, ours, counts)
    assert found["mean"] == pytest.approx((1 / 4 - 0.5) / 2)
    assert (found["low"], found["high"]) == pytest.approx(((0 - 0.5) / 2, (1 - 0.5) / 2))  # one document drawn twice


def test_a_folder_keeps_its_budget(tmp_path: Path) -> None:
    file = tmp_path / "budget.json"
    check_budget(file, {"steps": 1})
    check_budget(file, {"steps": 1})
    with pytest.raises(ConfigError, match=r"begun with \{'steps': 1\}, and this is \{'steps': 2\}"):
        check_budget(file, {"steps": 2})


def test_a_reused_stage_keeps_its_time(tmp_path: Path) -> None:
    clock = Clock(tmp_path / "seconds.json")
    clock.path.write_text('{"base": 12.5}')
    with clock.of("base"):
        pass
    assert clock.all == {"base": 12.5}
