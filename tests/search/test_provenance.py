"""How a search found its coefficients, as a recipe keeps it."""

import json
import math

from dem_hub.search.provenance import without_non_finite


def test_losses_that_are_not_finite_stay_out() -> None:
    data = {
        "losses": {"up": 1.5, "down": math.inf},
        "held_out": {"loss": math.nan, "baselines": {"1/N": 2.0, "up alone": math.inf}},
        "tokens": {"up": 7},
        "method": "grid",
    }
    kept = {"losses": {"up": 1.5}, "held_out": {"baselines": {"1/N": 2.0}}, "tokens": {"up": 7}, "method": "grid"}
    assert without_non_finite(data) == kept
    assert json.loads(json.dumps(without_non_finite(data), allow_nan=False)) == kept
