"""The share of a gain that is kept, its error, and the verdict."""

import math

import pytest
import torch

from dem_hub.evaluation.divergence import Compared
from dem_hub.evaluation.windows import Window
from dem_hub.models.verdict import DataCheck, Mean, judge


def test_the_error_of_the_share_is_that_of_a_jackknife() -> None:
    """Leaving out one document at a time gives it, too."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.randint(5, 40, (60,), generator=generator)
    noise = torch.randn(3, 60, generator=generator, dtype=torch.float64)
    finetuned, merged, base = counts * (torch.tensor([2.0, 2.2, 3.0])[:, None] + 0.3 * noise)
    windows = [Window((), (), place // 2) for place in range(60)]

    def share(chosen: list[int]) -> Mean:
        rows = [windows[place] for place in chosen]
        zeros = torch.zeros(len(chosen), dtype=torch.float64)
        compared = [Compared(totals[chosen], zeros) for totals in (base, merged)]
        return DataCheck.of(rows, counts[chosen].tolist(), finetuned[chosen], *compared).kept

    found = share(list(range(60)))
    assert found.value == pytest.approx(0.8, abs=3 * found.error)
    without = [share([place for place in range(60) if place // 2 != document]).value for document in range(30)]
    spread = torch.tensor(without)
    # Both are estimates, and agree to the first order.
    assert found.error == pytest.approx(math.sqrt(29 / 30 * float(((spread - spread.mean()) ** 2).sum())), rel=0.1)


@pytest.mark.parametrize(
    ("gain", "kept", "verdict"),
    [
        ((1.0, 0.1), (0.97, 0.02), "kept"),
        ((1.0, 0.1), (0.91, 0.02), "partly kept or kept"),
        ((1.0, 0.1), (0.5, 0.1), "partly kept"),
        ((1.0, 0.1), (0.0, 0.01), "lost"),
        ((1.0, 0.1), (0.5, 0.4), "lost or kept"),
        ((0.1, 0.1), (0.97, 0.02), "no gain to keep"),
        ((-1.0, 0.1), (0.97, 0.02), "no gain to keep"),
        ((1.0, math.nan), (0.97, math.nan), "no gain to keep"),
    ],
)
def test_the_verdict(gain: tuple[float, float], kept: tuple[float, float], verdict: str) -> None:
    assert judge(Mean(*gain), Mean(*kept)) == verdict
