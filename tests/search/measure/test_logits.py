"""The choice of windows whose logits are kept, and the memory they take."""

from itertools import pairwise

from dem_hub.search.measure.logits import choose_windows, parts_of, token_limit


def test_choose_windows() -> None:
    tokens = [5, 3, 8, 2, 7]
    assert choose_windows(tokens, 100) == [0, 1, 2, 3, 4]
    assert len(choose_windows(tokens, 0)) == 1
    chosen = [set(choose_windows(tokens, limit)) for limit in range(26)]
    assert all(smaller <= larger for smaller, larger in pairwise(chosen))
    assert all(sum(tokens[place] for place in places) <= max(limit, 8) for limit, places in enumerate(chosen))


def test_parts_of() -> None:
    assert parts_of([5, 3, 8, 2, 7], 10) == [[0, 1], [2, 3], [4]]
    assert parts_of([50, 3], 10) == [[0], [1]]
    assert parts_of([], 10) == []


def test_token_limit() -> None:
    assert token_limit(1000 * 100 * (4 + 2 * 3), 100, 3) == 1000
    assert token_limit(1, 100, 3) == 1
