"""What was measured is found again, also after a kill."""

import os
import resource
import signal
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
        torch.arange(12, dtype=torch.int32).view(3, 4),
        torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0.5, 1.5, -2.0]),
        2,
        moves,
    )


def same(first: Block, second: Block) -> bool:
    tensors = [(getattr(first, name), getattr(second, name)) for name in ("owners", "tokens", "center", "rest")]
    tensors += [(first.moves[name], second.moves[name]) for name in first.moves]
    return (first.first, set(first.moves)) == (second.first, set(second.moves)) and all(
        torch.equal(one, two) for one, two in tensors
    )


@pytest.mark.parametrize("on_disk", [False, True])
def test_numbers_and_logits(tmp_path: Path, on_disk: bool) -> None:
    cache = MeasurementCache(tmp_path / "cache" if on_disk else None)
    assert (cache.block("key"), "score" in cache) == (None, False)
    cache.put("score", [0.1, 1 / 3])
    cache.put_block("key", block())
    assert (cache["score"], len(cache)) == ([0.1, 1 / 3], 1)
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
    assert (MeasurementCache(tmp_path).block("key") is not None) is with_logits


@pytest.mark.parametrize("read_before", [False, True])
@pytest.mark.parametrize("place", ["its own folder", "that of an earlier search", "the same folder"])
def test_save_logits_that_are_on_disk(tmp_path: Path, place: str, read_before: bool) -> None:
    MeasurementCache(tmp_path / "a").put_block("key", block())
    cache = MeasurementCache(tmp_path / "a")
    if place == "that of an earlier search":
        cache = MeasurementCache(tmp_path / "b", known=cache)
    if read_before:
        found = cache.block("key")
        assert found is not None
        found.moves["new"] = torch.full((3, 4), 2.0).half()
        cache.put_move("key", "new")
    target = tmp_path / ("a" if place == "the same folder" else "copy")
    cache.save(target, with_logits=True)
    saved = MeasurementCache(target).block("key")
    assert saved is not None
    expected = block()
    if read_before:
        expected.moves["new"] = torch.full((3, 4), 2.0).half()
    assert same(saved, expected)


def test_logits_cannot_stay_nowhere() -> None:
    with pytest.raises(ConfigError, match="there is none. Give cache='FOLDER'"):
        MeasurementCache(keep_logits=True)


@pytest.mark.parametrize("keep", [False, True])
def test_logits_stay_only_if_asked_for(tmp_path: Path, keep: bool) -> None:
    """Those that an earlier search kept stay as they are; those of a search that did not end are used, and then go."""
    earlier = MeasurementCache(tmp_path, keep_logits=True)
    earlier.put_block("kept", block())
    earlier.finish()
    MeasurementCache(tmp_path).put_block("killed", block())
    cache = MeasurementCache(tmp_path, keep_logits=keep)
    for key in ("kept", "killed"):
        assert same(cache.block(key), block())  # type: ignore[arg-type]
    cache.put_block("new", block())
    cache.finish()
    again = MeasurementCache(tmp_path)
    assert {key: again.block(key) is not None for key in ("kept", "killed", "new")} == {
        "kept": True,
        "killed": keep,
        "new": keep,
    }
    assert {path.name for path in tmp_path.iterdir()} == {"logits"}
    assert same(cache.block("new"), block()), "in memory they are still there"  # type: ignore[arg-type]
    cache.save(tmp_path, with_logits=True)
    assert same(MeasurementCache(tmp_path).block("new"), block())  # type: ignore[arg-type]


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """What could not be written whole is an error of the system, and the next run goes on from what there is."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        cache = MeasurementCache(tmp_path)
        cache.put("first", 1.0)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30, 30))
        refused = 0
        try:
            cache.put("second", [0.1] * 100)
        except OSError as error:
            refused += str(tmp_path / "measured.jsonl") in str(error)
        try:
            cache.put_block("key", block())
        except OSError:
            refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    again = MeasurementCache(tmp_path)
    assert ("first" in again, "second" in again, again.block("key")) == (True, False, None)
    again.put("second", 2.0)
    again.put_block("key", block())
    assert MeasurementCache(tmp_path)["second"] == 2.0
    assert same(MeasurementCache(tmp_path).block("key"), block())  # type: ignore[arg-type]
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]


def test_searches_share_a_cache(tmp_path: Path) -> None:
    """Each line is whole, however long, and a reader never cuts off what another writes."""
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            cache = MeasurementCache(tmp_path)
            for step in range(10):
                cache.put(f"{number} {step}", [number + 0.1] * 3000)
                MeasurementCache(tmp_path)
            os._exit(0)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 3
    cache = MeasurementCache(tmp_path)
    assert len(cache) == 30
    assert all(cache[f"{number} {step}"] == [number + 0.1] * 3000 for number in range(3) for step in range(10))


def test_damaged_logits_are_measured_again(tmp_path: Path) -> None:
    cache = MeasurementCache(tmp_path)
    cache.put_block("key", block())
    file = next(path for path in (tmp_path / "unfinished-logits").iterdir() if "-" not in path.name)
    file.write_bytes(file.read_bytes()[:-3])
    again = MeasurementCache(tmp_path)
    assert again.block("key") is None
    again.put_block("key", block())
    assert same(MeasurementCache(tmp_path).block("key"), block())  # type: ignore[arg-type]
