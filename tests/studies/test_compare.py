"""Two reports are the same where every value is, but for the seconds."""

from typing import Any

import pytest

from studies.data_mixing.compare import differences

REPORT: dict[str, Any] = {
    "loss": 2.0,
    "count": 3,
    "seconds": 5.0,
    "each": [1.0, {"name": "gsm", "seconds": 1}],
    "none": None,
}


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"seconds": 9.0, "each": [1.0, {"name": "gsm", "seconds": 7}]}, []),
        ({"loss": 2.001}, []),
        ({"loss": 2.1}, ["/loss: 2.0 and 2.1, 0.1 apart"]),
        ({"count": 4}, ["/count: 3 and 4"]),
        ({"each": [1.0, {"name": "code"}]}, ["/each/1/name: 'gsm' and 'code'"]),
        ({"each": [1.0]}, ["/each: [1.0, {'name': 'gsm', 'seconds': 1}] and [1.0]"]),
        ({"none": 0.0}, ["/none: None and 0.0"]),
        ({"more": 1}, ["/more: only in the second"]),
        ({"loss": float("nan")}, ["/loss: 2.0 and nan, nan apart"]),
    ],
)
def test_what_differs_is_named(changed: dict[str, Any], expected: list[str]) -> None:
    assert list(differences(REPORT, REPORT | changed, tolerance=1e-3)) == expected
