"""The split keeps groups apart and depends on nothing but its seed; checked on small lists and on the interpreter's own texts."""

import json
from itertools import combinations
from pathlib import Path

import pytest

from dem_hub.demo import texts
from dem_hub.demo.texts import (
    SIDES,
    Distribution,
    pieces,
    sections,
    split_by_group,
    write_distributions,
)

DOCUMENTS = [(f"group {i % 20}", f"document {i} of group {i % 20}") for i in range(200)]


def sides(distribution: Distribution) -> list[list[str]]:
    return [getattr(distribution, side) for side in SIDES]


def test_no_group_is_on_two_sides() -> None:
    split = split_by_group("any", DOCUMENTS, seed=0)
    groups = [{text.partition(" of ")[2] for text in side} for side in sides(split)]
    assert [len(side) for side in groups] == [12, 4, 4]
    assert all(one.isdisjoint(other) for one, other in combinations(groups, 2))


def test_a_text_of_two_groups_stays_in_the_first() -> None:
    copies = [("copier", text.upper().replace(" ", "  ")) for _, text in DOCUMENTS]
    assert split_by_group("any", [*DOCUMENTS, *copies], seed=0) == split_by_group("any", DOCUMENTS, seed=0)


def test_a_large_group_gives_few_documents() -> None:
    large = [("group 0", f"more {i}") for i in range(500)]
    split = split_by_group("any", [*DOCUMENTS, *large], seed=0)
    assert sum(len(side) for side in sides(split)) == 12 + 19 * 10


@pytest.mark.parametrize(("name", "seed", "same"), [("any", 0, True), ("any", 1, False), ("other", 0, False)])
def test_name_and_seed_decide_the_split(name: str, seed: int, same: bool) -> None:
    assert (split_by_group(name, DOCUMENTS, seed=seed).train == split_by_group("any", DOCUMENTS, seed=0).train) is same


def test_pieces_end_between_paragraphs() -> None:
    paragraphs = [f"{i} " + "x" * 398 for i in range(10)]
    assert list(pieces("\n\n".join(paragraphs), size=1_000)) == [
        "\n\n".join(paragraphs[start : start + 3]) for start in (0, 3, 6)
    ] + [paragraphs[9]]


@pytest.mark.parametrize("text", ["too short", "x" * 4_000], ids=["stub", "table"])
def test_pieces_drops_what_is_no_text(text: str) -> None:
    assert list(pieces(text)) == []


def test_sections_have_one_title_at_any_depth() -> None:
    alone = 'The "with" statement\n********************\n\nThe "with" statement is used to\nwrap.\n'
    within = 'Compound\n********\n\nMany.\n\n\nThe "with" statement\n====================\n\nThe "with" statement is used to\nwrap.\n'
    assert list(sections(within)) == [("Compound", "\nMany.\n\n\n"), *sections(alone)]


@pytest.mark.parametrize("read", [texts._code, texts._reference], ids=["code", "reference"])
def test_the_interpreter_has_enough_text(read: object) -> None:
    split = split_by_group("any", read(), seed=0)  # type: ignore[operator]
    assert len(split.train) > 100
    assert min(len(split.validation), len(split.test)) > 30
    assert all(set(one).isdisjoint(other) for one, other in combinations(sides(split), 2))


def test_maths_is_the_same_twice_and_shares_no_problem() -> None:
    pytest.importorskip("reasoning_gym")
    split, again = (split_by_group("gsm", texts._gsm(), seed=0) for _ in range(2))
    assert split == again
    assert len(split.train) > 500
    assert not any("Give the result as your final answer" in text for side in sides(split) for text in side)
    assert all(set(one).isdisjoint(other) for one, other in combinations(sides(split), 2))


def test_files_hold_one_record_a_line(tmp_path: Path) -> None:
    written = Distribution("maths", train=["one\ntwo", "\u2019"], validation=["three"], test=[])
    paths = write_distributions([written], tmp_path / "texts")
    assert [path.name for path in paths] == [
        "maths.train.jsonl",
        "maths.validation.jsonl",
        "maths.test.jsonl",
    ]
    assert sorted((tmp_path / "texts").iterdir()) == sorted(paths)
    read = [[json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] for path in paths]
    assert read == [[{"text": "one\ntwo"}, {"text": "\u2019"}], [{"text": "three"}], []]
