"""The split of windows into two parts, by documents."""

import pytest

from dem_hub.evaluation.split import split
from dem_hub.evaluation.windows import Window


def made(documents: list[int]) -> list[Window]:
    return [Window((number, number + 1), (number, number + 1), document) for number, document in enumerate(documents)]


@pytest.mark.parametrize(("share", "held"), [(0.25, 2), (0.5, 4), (0.01, 1), (0.99, 7), (0.0, 0)])
def test_split_never_cuts_a_document(share: float, held: int) -> None:
    windows = made([number // 3 for number in range(24)])
    first, second = split(windows, share, seed=1)
    assert len({window.document for window in second}) == held
    assert not {window.document for window in first} & {window.document for window in second}
    assert sorted(first + second, key=lambda window: window.input_ids) == windows
    assert split(windows, share, seed=1) == (first, second)


@pytest.mark.parametrize(("count", "sizes"), [(8, (6, 2)), (2, (1, 1)), (1, (1, 0))])
def test_a_single_document_is_cut_at_its_end(count: int, sizes: tuple[int, int]) -> None:
    first, second = split(made([0] * count), 0.25)
    assert (len(first), len(second)) == sizes
    assert first + second == made([0] * count)
