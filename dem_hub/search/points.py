"""Points of a search: one coefficient per vector, in order, or one per group of a vector's tensors.

A point is a plain tuple of floats, so that it is hashable, comparable and exactly what a file holds. Strategies
that calculate with points convert them to float64 tensors.
"""

from collections.abc import Sequence

Point = tuple[float, ...]

_ALONE = " alone"


def alone(name: str) -> str:
    """Return the label of a vector with coefficient 1 and no other."""
    return f"{name}{_ALONE}"


def split_label(label: str) -> tuple[str, str]:
    """Return the name of the vector in a label, and the rest of the label: nothing, or what [`alone`] adds."""
    name = label.removesuffix(_ALONE)
    return name, label[len(name) :]


def each_alone(count: int) -> list[Point]:
    """Return the points that use one vector in full and no other, in the order of the vectors.

    Args:
        count (`int`): Number of coefficients of a point.

    Example:

    ```python
    >>> from dem_hub.search.points import each_alone
    >>> each_alone(3)
    [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]

    ```
    """
    points = []
    for vector in range(count):
        point = [0.0] * count
        point[vector] = 1.0
        points.append(tuple(point))
    return points


def all_at(level: float, count: int) -> Point:
    """Return the point with the same coefficient everywhere; at level 0 it is the base."""
    return (level,) * count


def moved(point: Sequence[float], place: int, step: float) -> Point:
    """Return a point a step away along one coordinate."""
    coefficients = list(point)
    coefficients[place] += step
    return tuple(coefficients)
