"""How the compiled passes are compiled; what they compute is tested with `rounding`, which uses them."""

from typing import Any

import numba
import pytest

from dem_hub.numerics.kernels import _compiled


def test_compiles_where_nothing_can_be_kept() -> None:
    """As in an installation that is read-only, for a user without a home: numba finds no folder for code that is in no file."""
    namespace: dict[str, Any] = {}
    exec("def twice(number):\n    return 2 * number", namespace)
    signature = numba.int64(numba.int64)
    with pytest.raises(RuntimeError, match="cannot cache"):
        numba.njit(signature, cache=True)(namespace["twice"])
    assert _compiled(signature)(namespace["twice"])(21) == 42
