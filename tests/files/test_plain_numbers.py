"""Numbers of other libraries become Python's, with the same value; whatever is no number stays as it is."""

from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from dem_hub.files.plain_numbers import plain

NUMBERS: list[tuple[Any, int | float]] = [
    (np.float16(0.5), 0.5),
    (np.float32(0.1), float(np.float32(0.1))),
    (np.float64(0.1), 0.1),
    (np.longdouble(0.5), 0.5),
    (np.int8(-3), -3),
    (np.uint64((1 << 64) - 1), (1 << 64) - 1),
    (Fraction(1, 4), 0.25),
    (3, 3),
    (0.3, 0.3),
]


@pytest.mark.parametrize(("number", "same"), NUMBERS, ids=lambda value: type(value).__name__)
def test_numbers(number: Any, same: float) -> None:
    for given, expected in ((number, same), ({"a": [number]}, {"a": [same]}), ((number, "b"), (same, "b"))):
        assert plain(given) == expected
    assert type(plain(number)) is type(same)


OTHERS: list[Any] = [
    True,
    np.bool_(True),
    torch.tensor(0.5),
    np.array(0.5),
    Decimal(1),
    1j,
    "1",
    None,
    Fraction(10**400),
]


@pytest.mark.parametrize("value", OTHERS, ids=lambda value: type(value).__name__)
def test_others_stay(value: Any) -> None:
    assert plain(value) is value
