"""Numbers of other libraries as Python's own, which JSON has, and which the checks of arguments know.

Optimizers and `numpy.linspace` give coefficients as `numpy.float32`. What is a real number is told by Python's own
protocol, `numbers.Real`: numpy's numbers and fractions follow it. Tensors and `numpy.bool` do not, and stay as they
are.
"""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any


def plain(value: Any) -> Any:
    """Return a real number as an `int` or a `float`, also in mappings, lists and tuples; anything else as it is.

    Example:

    ```python
    >>> import numpy as np
    >>> from dem_hub.files.plain_numbers import plain
    >>> plain(np.float32(0.5)), plain({"attention": np.int64(1)}), plain((np.float64(0), "a")), plain(True)
    (0.5, {'attention': 1}, (0.0, 'a'), True)

    ```
    """
    if isinstance(value, Mapping):
        return {name: plain(entry) for name, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(plain, value))
    if type(value) in (bool, int, float):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        try:
            return float(value)
        except OverflowError:  # a fraction that is larger than every float; whoever takes the number refuses it
            return value
    return value
