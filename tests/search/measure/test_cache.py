"""What was measured is found again, also after a kill."""

from pathlib import Path

import pytest
import torch

from dem_hub.errors import ConfigError
from dem_hub.search.measure.cache import MeasurementCache
from dem_hub.search.measure.logits import Block


def block() -> Block:
    moves = {"abc": torch.ones(3, 4).half(), "abc.1": torch.zeros(3, 4).half()}
    return Block(
        torch.tensor([0, 0, 2]),
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([1, 2, 3]),
        moves,
    )


def same(first: Block, second: Block) -> bool:
    tensors = [(getattr(first, name), getattr(second, name)) for name in ("owners", "center", "targets")]
    tensors += [(first.moves[name], second.moves[name]) for name in first.moves]
    return set(first.moves) == set(second.moves) and all(torch.equal(one, two) for one, two in tensors)


@pytest.mark.parametrize("on_disk", [False, True])
def test_numbers_and_logits(tmp_path: Path, on_disk: bool) -> None:
    cache = MeasurementCache(tmp_path / "cache" if on_disk else None)
    assert (cache.block("key"), cache.has_logits, "score" in cache) == (None, False, False)
    cache.put("score", [0.1, 1 / 3])
    cache.put_block("key", block())
    assert (cache["score"], len(cache), cache.has_logits) == ([0.1, 1 / 3], 1, True)
    assert same(cache.block("key"), block())  # type: ignore[arg-type]
    again = MeasurementCache(cache.folder)
    assert ("score" in again, again.block("key") is not None) == (on_disk, on_disk)
    if on_disk:
        assert again["score"] == [0.1, 1 / 3]
        assert same(again.block("key"), block())  # type: ignore[arg-type]


def test_half_a_line_is_cut_off(tmp_path: Path) -> None:
    cache = MeasurementCache(tmp_path)
    cache.put("first", 1.0)
    with (tmp_path / "measured.jsonl").open("a") as file:
        file.write('["second", 2.')
    again = MeasurementCache(tmp_path)
    assert ("first" in again, "second" in again) == (True, False)
    again.put("third", 3.0)
    assert {key: MeasurementCache(tmp_path)[key] for key in ("first", "third")} == {"first": 1.0, "third": 3.0}


def test_lines_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "measured.jsonl").write_text('{"a": 1}\n')
    with pytest.raises(ConfigError, match="line 1: not a line of a search"):
        MeasurementCache(tmp_path)


@pytest.mark.parametrize("with_logits", [False, True])
def test_save(tmp_path: Path, with_logits: bool) -> None:
    cache = MeasurementCache()
    cache.put("score", 1.0)
    cache.put_block("key", block())
    cache.save(tmp_path, with_logits=with_logits)
    assert MeasurementCache(tmp_path)["score"] == 1.0
    assert MeasurementCache(tmp_path).has_logits is with_logits
