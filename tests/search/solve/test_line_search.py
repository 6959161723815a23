"""The lowest point of a line: found where it is known, for few values, and never worse than what was tried first."""

import math
from collections.abc import Callable

import pytest

from dem_hub.search.solve.line_search import LEAST_GAIN, ROUNDS, lowest

STARTS = [0.0, 0.25, 1.0]


def searched(
    function: Callable[[float], float], starts: list[float], low: float = 0.0, high: float = 1.5
) -> tuple[float, int]:
    """The value that is found, and how many were needed."""
    seen: list[float] = []

    def counted(point: float) -> float:
        assert low <= point <= high
        assert point not in seen
        seen.append(point)
        return function(point)

    return function(lowest(counted, starts, low, high)), len(seen)


LINES: dict[str, tuple[Callable[[float], float], float, int]] = {  # with the lowest value, and how many it may take
    "parabola": (lambda x: (x - 0.6) ** 2, 0.0, 5),
    "quartic": (lambda x: (x - 0.6) ** 2 + 3 * (x - 0.6) ** 4, 0.0, 9),
    "steep above": (lambda x: math.exp(3 * (x - 0.7)) - 3 * (x - 0.7), 1.0, 11),
    "steep below": (lambda x: math.exp(-3 * (x - 0.7)) + 3 * (x - 0.7), 1.0, 11),
    "a wall": (lambda x: (x - 0.7) ** 2 if x < 0.9 else 20.0, 0.0, 14),
    "no number beyond": (lambda x: (x - 0.7) ** 2 if x < 0.9 else math.nan, 0.0, 14),
    "a kink": (lambda x: max(0.5 - x, 2 * (x - 0.5)), 0.0, 14),
    "lowest at the upper end": (lambda x: -x, -1.5, 6),
    "lowest at the lower end": (lambda x: x * x, 0.0, 4),
}


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("guess", [0.6, 1.1, 0.02, 1.5])
def test_the_lowest(name: str, guess: float) -> None:
    """To a few times what a parabola must promise for another value, whatever the guess; a kink has no parabola."""
    function, least, most = LINES[name]
    found, count = searched(function, [*STARTS, guess])
    assert found <= least + (0.005 if name == "a kink" else 5 * LEAST_GAIN)
    assert count <= most


def test_never_worse_than_the_starts() -> None:
    """Of two valleys it may find the wrong one, and no more than that."""
    points = [number / 10 for number in range(16)]
    for shift in range(10):
        values = [math.sin(9 * x + shift) for x in points]
        found, count = searched(lambda x, shift=shift: math.sin(9 * x + shift), points)  # type: ignore[misc]
        assert found <= min(values)
        assert count <= len(points) + ROUNDS


@pytest.mark.parametrize("starts", [[0.3], [0.0], [1.5], [0.3, 0.3], [9.0, -9.0]])
def test_any_starts(starts: list[float]) -> None:
    assert searched(lambda x: (x - 0.7) ** 2, starts)[0] < 10 * LEAST_GAIN


def test_a_line_that_is_a_point() -> None:
    assert searched(lambda x: x, STARTS, 0.5, 0.5) == (0.5, 1)


def test_starts_that_are_nearly_the_same() -> None:
    """A slope between two of them would be that of the noise, here of float32."""

    def noisy(x: float) -> float:
        return 3.0 + (x - 0.7) ** 2 + 1e-6 * math.sin(1e9 * x)

    found, count = searched(noisy, [*STARTS, 0.25 + 1e-9, 1.0 - 1e-9])
    assert found < 3.0 + 5 * LEAST_GAIN
    assert count <= 5


def test_nothing_finite() -> None:
    assert lowest(lambda x: math.inf, STARTS, 0.0, 1.5) in STARTS
