"""How long the study is: everything that costs time, in one record for the full run and one for a quick look."""

from dataclasses import asdict, dataclass
from typing import Any

NAMES = ("gsm", "code", "reference", "tasks")
LATER = "exams"  # the distribution that arrives when the others are trained


@dataclass(frozen=True)
class Settings:
    """Steps are of 512 tokens; tokens are of each distribution; `mixtures` are the shares that data mixing is tuned over."""

    layers: int | None = None  # of the base, from the first; None: all
    steps: int = 20  # of each fine-tune; a mixture of four has four times as many
    mixtures: tuple[tuple[float, ...], ...] = (
        (0.25, 0.25, 0.25, 0.25),
        (0.4, 0.2, 0.2, 0.2),
        (0.2, 0.4, 0.2, 0.2),
        (0.2, 0.2, 0.4, 0.2),
        (0.2, 0.2, 0.2, 0.4),
    )
    validation_tokens: int = 600
    test_tokens: int = 2_500
    window: int = 128
    grid: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    grid_scored: int = 10  # of the grid's points, the best by the statistics of `gauss_newton`
    trials: int = 30  # of Optuna's sampler
    items: int = 60  # of each downstream task
    architectures: str = "full"
    seed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """As JSON data, without what is not set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


FULL = Settings()
SMOKE = Settings(
    layers=3,
    steps=2,
    mixtures=((0.25, 0.25, 0.25, 0.25), (0.4, 0.2, 0.2, 0.2)),
    validation_tokens=100,
    test_tokens=150,
    window=48,
    grid_scored=2,
    trials=4,
    items=4,
    architectures="smoke",
)
