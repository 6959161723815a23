"""The answer is accepted on data the search did not see, or the best of the obvious is returned."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dem_hub.search.acceptance import Acceptance, accept, expected_excess, rivals
from dem_hub.search.data import Window
from dem_hub.search.objective import Objective


class HeldOut:
    """Losses by point, with noise from document to document that all points share."""

    def __init__(self, losses: dict[tuple[float, ...], float], own_noise: float = 0.0) -> None:
        generator = torch.Generator().manual_seed(0)
        self.shared = torch.randn(50, generator=generator, dtype=torch.float64)
        self.own = {point: own_noise * torch.randn(50, generator=generator, dtype=torch.float64) for point in losses}
        self.means = losses
        self.data = {"maths": [Window((), (), document) for document in range(50)]}
        self.tokens = {"maths": [10] * 50}

    def window_totals(self, point: Sequence[float]) -> dict[str, Tensor]:
        own = self.own[tuple(point)]
        return {"maths": 10 * (self.means[tuple(point)] + self.shared - self.shared.mean() + own - own.mean())}

    def losses(self, point: Sequence[float]) -> dict[str, float]:
        return {name: float(values.sum()) / 500 for name, values in self.window_totals(point).items()}


BASE, SINGLE, UNIFORM, FOUND = (0.0, 0.0), (1.0, 0.0), (0.5, 0.5), (0.4, 0.7)


def judged(found: float, uniform: float, own_noise: float = 0.0) -> Acceptance:
    held: Any = HeldOut({BASE: 3.0, SINGLE: 2.9, UNIFORM: uniform, FOUND: found}, own_noise)
    return accept(held, Objective(), FOUND, {"base": BASE, "a alone": SINGLE, "1/N": UNIFORM})


@pytest.mark.parametrize(
    ("found", "uniform", "noise", "chosen"),
    [
        (2.0, 2.1, 0.0, "found"),
        (2.1, 2.0, 0.0, "1/N"),
        (2.001, 2.0, 0.5, "found"),  # better by chance, for all anyone can tell
        (2.5, 2.0, 0.5, "1/N"),
        (3.5, 3.2, 0.0, "a alone"),
        (float("nan"), 2.0, 0.0, "1/N"),
    ],
)
def test_who_is_chosen(found: float, uniform: float, noise: float, chosen: str) -> None:
    accepted = judged(found, uniform, noise)
    assert accepted.chosen == chosen
    assert accepted.is_found is (chosen == "found")
    assert list(accepted.contenders) == ["found", "base", "a alone", "1/N"]


def test_differences_are_paired() -> None:
    """What all models share from document to document, a hundred times their difference, does not count."""
    accepted = judged(2.0, 2.1)
    assert accepted.contenders["1/N"].difference == pytest.approx(0.1)
    assert accepted.contenders["1/N"].error < 1e-9
    noisy = judged(2.0, 2.1, 0.5)
    assert noisy.contenders["1/N"].error == pytest.approx(0.5 * 2**0.5 / 50**0.5, rel=0.3)


def test_as_json() -> None:
    accepted = judged(2.0, 2.1)
    assert Acceptance.from_dict(accepted.to_dict()) == accepted


def test_rivals() -> None:
    assert rivals(("a", "b"), (0.3, 0.3), (0.1, 0.0)) == {
        "base": BASE, "a alone": SINGLE, "b alone": (0.0, 1.0), "1/N": UNIFORM, "common": (0.3, 0.3), "before": (0.1, 0.0),
    }  # fmt: skip
    assert list(rivals(("a",), None)) == ["base", "a alone", "1/N"]


def test_expected_excess() -> None:
    """Wilks: fitted means of unit Gaussians are half a squared standard error each above the truth."""
    generator = torch.Generator().manual_seed(0)
    means = torch.randn(2000, 4, 100, generator=generator).mean(-1)
    assert expected_excess(100, 4, 1) == pytest.approx(float((means**2).sum(1).mean()) / 2, rel=0.1)
    assert expected_excess(1000, 4, 10) == expected_excess(100, 4, 1)
