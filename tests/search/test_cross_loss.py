"""The cross-loss table and what it says about vectors."""

from collections.abc import Mapping

import pytest

from dem_hub.search.cross_loss import Cell, CrossLoss, geometry_flags, own_distribution
from dem_hub.vectors.comparison import Comparison


def table(**losses: tuple[float, float]) -> CrossLoss:
    return CrossLoss(
        {model.replace("_", "/"): {"maths": Cell(a, 0.1), "chat": Cell(b, 0.1)} for model, (a, b) in losses.items()}
    )


@pytest.mark.parametrize(
    ("losses", "dead"),
    [
        ({"me_maths": (1.0, 3.0), "me_chat": (3.0, 1.0)}, []),
        ({"me_maths": (2.0, 1.0), "me_chat": (3.0, 1.0)}, ["me/maths"]),
        ({"me_other": (2.5, 1.9)}, []),
        ({"me_other": (2.5, 2.0)}, ["me/other"]),
    ],
)
def test_dead_vectors(losses: Mapping[str, tuple[float, float]], dead: list[str]) -> None:
    flags = table(base=(2.0, 2.0), **losses).flags()
    assert [flag.split("'")[1] for flag in flags] == dead
    assert all("is no better than the base" in flag and "the base's 2.0000" in flag for flag in flags)


def test_nothing_to_compare_with() -> None:
    assert table(me_maths=(1.0, 1.0)).flags() == []


def test_own_distribution() -> None:
    gains = {"code": 0.5, "codeio": 0.1, "chat": 0.9}
    assert own_distribution("me/codeio-vector", gains) == "codeio"
    assert own_distribution("/tmp/code/vector", gains) == "chat"
    assert own_distribution("me/Code_vector", gains) == "code"
    assert own_distribution("me/encoder", gains) == "chat"  # not a word of it


@pytest.mark.parametrize(
    ("norms", "cosine", "said"),
    [
        ((1.0, 1.1, 0.9), 0.1, []),
        ((1.0, 9.0, 1.1), 0.1, ["'b' has norm 9"]),
        ((1.0, 1.0, 1.0), 0.95, ["'a' and 'b' have cosine 0.95"]),
    ],
)
def test_geometry(norms: tuple[float, ...], cosine: float, said: list[str]) -> None:
    cosines = ((1.0, cosine, 0.0), (cosine, 1.0, 0.0), (0.0, 0.0, 1.0))
    flags = geometry_flags(Comparison(("a", "b", "c"), norms, cosines, cosines))
    assert [any(text in flag for flag in flags) for text in said] == [True] * len(said)
    assert len(flags) == len(said)
