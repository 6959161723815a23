"""The lowest point of a line by few values: parabolas where they promise something, the golden section where they are one-sided.

A value is a pass over data here. So the line is left as soon as a parabola through the best three promises less than a difference that
nobody would see, and what was scored is the answer, never what a parabola says.
"""

import math
from collections.abc import Callable, Iterable

LEAST_GAIN = 1e-4  # nats that are worth another value
ROUNDS = 10  # values beyond the first ones, at most
_NEAR = 1e-3  # apart, at least: slopes between closer points are those of rounding
_FAR = 2.0  # times the last distance, where the line still falls
_GOLDEN = (3 - 5**0.5) / 2
_LOPSIDED = 4.0  # one side of the best, over the other
_DIVERGED = 1e3  # for what is not finite: worse than all else, and a number that a parabola can be drawn through


def lowest(function: Callable[[float], float], starts: Iterable[float], low: float, high: float) -> float:
    """The lowest of the points that were tried, from the best of the first ones downhill to where a line is flat.

    Args:
        function (`Callable`): of one number; it may be infinite or no number.
        starts (`Iterable[float]`): where to try first, moved between the bounds.
        low, high (`float`): the bounds.

    Example:

    ```python
    >>> from dem_hub.search.solve.line_search import lowest
    >>> round(lowest(lambda x: (x - 0.7) ** 2, [0.0, 1.0], 0.0, 1.5), 6)
    0.7
    >>> lowest(lambda x: x, [0.5, 1.0], 0.0, 1.5)
    0.0

    ```
    """
    seen: dict[float, float] = {}

    def try_at(point: float) -> bool:
        if any(abs(point - other) < _NEAR for other in seen):
            return False
        value = function(point)
        seen[point] = value if math.isfinite(value) else _DIVERGED
        return True

    for start in starts:
        try_at(min(max(start, low), high))
    for _ in range(ROUNDS):
        point = _next(seen, low, high)
        if point is None or not try_at(point):
            break
    return min(seen, key=seen.__getitem__)


def _next(seen: dict[float, float], low: float, high: float) -> float | None:
    """Where to try next; `None` where that would not be worth it."""
    points = sorted(seen)
    best = min(points, key=seen.__getitem__)
    place, last = points.index(best), len(points) - 1
    if place == 0 and best > low:
        return max(low, best - _FAR * (points[1] - best)) if last else low
    if place == last and best < high:
        return min(high, best + _FAR * (best - points[-2])) if last else high
    if last < 2:
        return (points[0] + points[-1]) / 2
    return _between(seen, points, best)


def _between(seen: dict[float, float], points: list[float], best: float) -> float | None:
    """Where to try next, near the best of three points or more that has a neighbour on each side, or is a bound."""
    start = min(max(points.index(best) - 1, 0), len(points) - 3)
    a, b, c = near = points[start : start + 3]
    bend = _difference(seen, near)
    if bend <= 0:  # flat, or a hill with the best at its foot, which is a bound
        return None
    vertex = min(max((a + b) / 2 - _difference(seen, [a, b]) / (2 * bend), a), c)
    promised = bend * (best - vertex) ** 2 if a < vertex < c else 0.0
    doubt = 0.0
    if len(points) > 3:  # what a cubic through one more would promise
        fourth = min((point for point in points if point not in near), key=lambda point: abs(point - best))
        doubt = (_difference(seen, [*near, fourth]) * (b - a) * (c - b)) ** 2 / (4 * bend)
    if best == b:
        wider, narrower = (c - b, a - b) if c - b > b - a else (a - b, c - b)
        lopsided = (
            abs(wider) > _LOPSIDED * abs(narrower) and (vertex - b) * wider <= 0
        )  # a steep wall pushes any parabola away
        if lopsided or (promised < LEAST_GAIN < doubt):
            return b + _GOLDEN * wider
    return vertex if promised > LEAST_GAIN else None


def _difference(seen: dict[float, float], points: list[float]) -> float:
    """Newton's divided difference: the slope of a line through two points, the bend of a parabola through three, and so on."""
    if len(points) == 1:
        return seen[points[0]]
    return (_difference(seen, points[1:]) - _difference(seen, points[:-1])) / (points[-1] - points[0])
