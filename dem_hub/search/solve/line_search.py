"""Minimization of a function of one variable with few evaluations.

Steps are parabolic, and golden-section where the bracket is one-sided, much as in Brent's method. An evaluation is a
pass over data, so the search stops as soon as a parabola through the best three points promises less than
`LEAST_GAIN`. The answer is always a point that was evaluated, never the vertex of a parabola.
"""

import math
from collections.abc import Callable, Iterable

# Nats that are worth another evaluation, the same as those that are worth a Gauss-Newton step. Chosen by hand, not
# measured.
LEAST_GAIN = 1e-4

# Evaluations after the first points, at most. In the tests, a parabola takes one, and a wall or a kink up to ten.
ROUNDS = 10

# The least distance of two points. The slope between closer ones is that of rounding in float32 losses. Chosen by
# hand, not measured.
_LEAST_DISTANCE = 1e-3

# A step beyond an outer point that is the lowest, in units of the distance to its neighbour. Chosen by hand, not
# measured.
_EXPANSION = 2.0

# The fraction of the wider side of a bracket that a golden-section step goes.
_GOLDEN = (3 - 5**0.5) / 2

# A bracket is one-sided if one side is this many times as long as the other. Chosen by hand, not measured.
_ONE_SIDED = 4.0

# The value of a point whose loss is not finite, in nats: worse than any loss, and small enough that a parabola can be
# drawn through it.
_DIVERGED = 1e3


def lowest(function: Callable[[float], float], starts: Iterable[float], low: float, high: float) -> float:
    """Return the lowest of the points that were tried.

    Some given points are tried first, then points downhill from the best of them until the line is flat.

    Args:
        function (`Callable`): Returns the value at a point, in nats. It can be infinite or not a number.
        starts (`Iterable[float]`): The points to try first. Those outside the bounds are moved to them.
        low, high (`float`): The bounds.

    Example:

    ```python
    >>> from dem_hub.search.solve.line_search import lowest
    >>> round(lowest(lambda x: (x - 0.7) ** 2, [0.0, 1.0], 0.0, 1.5), 6)
    0.7
    >>> lowest(lambda x: x, [0.5, 1.0], 0.0, 1.5)
    0.0

    ```
    """
    values: dict[float, float] = {}

    def try_at(point: float) -> bool:
        """Evaluate a point, and return whether that was new."""
        if any(abs(point - other) < _LEAST_DISTANCE for other in values):
            return False
        value = function(point)
        values[point] = value if math.isfinite(value) else _DIVERGED
        return True

    for start in starts:
        try_at(min(max(start, low), high))
    for _ in range(ROUNDS):
        point = _next_point(values, low, high)
        if point is None or not try_at(point):
            break
    return min(values, key=values.__getitem__)


def _next_point(values: dict[float, float], low: float, high: float) -> float | None:
    """Return the point to try next, or `None` if no point is worth it."""
    points = sorted(values)
    best = min(points, key=values.__getitem__)
    if best == points[0] and best > low:
        if len(points) == 1:
            return low
        return max(low, best - _EXPANSION * (points[1] - best))
    if best == points[-1] and best < high:
        if len(points) == 1:
            return high
        return min(high, best + _EXPANSION * (best - points[-2]))
    if len(points) < 3:
        return (points[0] + points[-1]) / 2
    return _point_between(values, points, best)


def _point_between(values: dict[float, float], points: list[float], best: float) -> float | None:
    """Return the point to try next near the best of three points or more, or `None` if no point is worth it.

    The best point has a neighbour on each side, or is at a bound. The vertex of the parabola through the best point
    and its neighbours promises a gain. Two cases mistrust it: a steep wall on the wider side of a one-sided bracket
    pushes any vertex away from that side, and a cubic through a fourth point can promise more than the parabola. Both
    answer with a golden-section step into the wider side.
    """
    first = min(max(points.index(best) - 1, 0), len(points) - 3)
    nearest = points[first : first + 3]
    left, middle, right = nearest
    bend = _divided_difference(values, nearest)
    if bend <= 0:
        # Flat, or a hill with the best point at its foot, which is then a bound.
        return None
    vertex = (left + middle) / 2 - _divided_difference(values, [left, middle]) / (2 * bend)
    vertex = min(max(vertex, left), right)
    promised = bend * (best - vertex) ** 2 if left < vertex < right else 0.0
    if best == middle:
        wider = right - middle
        narrower = left - middle
        if wider <= -narrower:
            wider, narrower = narrower, wider
        is_one_sided = abs(wider) > _ONE_SIDED * abs(narrower) and (vertex - middle) * wider <= 0
        if is_one_sided or promised < LEAST_GAIN < _gain_of_cubic(values, points, nearest, bend):
            return middle + _GOLDEN * wider
    if promised > LEAST_GAIN:
        return vertex
    return None


def _gain_of_cubic(values: dict[float, float], points: list[float], nearest: list[float], bend: float) -> float:
    """Return about how much lower a cubic through one more point may lead than the parabola; 0 without such a point.

    `nearest` are the three points of the parabola, and `bend` is its factor of x^2.
    """
    others = [point for point in points if point not in nearest]
    if not others:
        return 0.0
    left, middle, right = nearest
    best = min(nearest, key=values.__getitem__)
    fourth = min(others, key=lambda point: abs(point - best))
    third_difference = _divided_difference(values, [*nearest, fourth])
    # The cubic is the parabola + third_difference * (x - left) * (x - middle) * (x - right). At the middle point this
    # adds a slope (here without its sign), and with it bend * x^2 falls by slope^2 / (4 * bend).
    slope = third_difference * (middle - left) * (right - middle)
    return slope**2 / (4 * bend)


def _divided_difference(values: dict[float, float], points: list[float]) -> float:
    """Return Newton's divided difference: the slope of a line for two points, the bend of a parabola for three."""
    if len(points) == 1:
        return values[points[0]]
    difference = _divided_difference(values, points[1:]) - _divided_difference(values, points[:-1])
    return difference / (points[-1] - points[0])
