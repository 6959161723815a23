"""How often a search returns a rival that is worse than what it found.

    python benchmarks/acceptance.py

What was found is compared with its rivals on a few held-out documents, by the rule of the library and by the rule before
it, one standard error for any number of rivals. The truth is the mean over all documents. Two kinds of losses:

* "noise": all models are equally good, and differ by noise of each document alone, with heavy tails and half of it
  shared among the rivals. It is what vectors of pure noise give.
* "real": a tiny Llama taught to count up, down or by threes. 60 points are run over 600 documents of each distribution
  once. Then a search takes the best of them on some documents and is compared on others, again and again.

It fails if the library's rule returns a worse rival in more than 5 % of the cases, with two standard errors for chance.
"""

import argparse
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from dem_hub.evaluation.windows import Window
from dem_hub.search.held_out import COMMON, FOUND, LEVEL, Acceptance, Measured, accept_measured
from dem_hub.search.solve.objective import Objective

TOKENS = 19  # scored tokens of a document
DISTRIBUTIONS = ("up", "down", "threes")


@dataclass
class HeldOut:
    """What a comparison needs of an evaluator: documents of one window each, and their tokens."""

    documents: int

    def __post_init__(self) -> None:
        self.data = {name: [Window((), (), place) for place in range(self.documents)] for name in DISTRIBUTIONS}
        self.tokens = {name: [TOKENS] * self.documents for name in DISTRIBUTIONS}


def compared(totals: dict[str, Tensor]) -> Acceptance:
    """Compare models by the losses of documents, (distributions, documents) each, in nats a token."""
    measured = {}
    for label, values in totals.items():
        by_name = dict(zip(DISTRIBUTIONS, TOKENS * values, strict=True))
        losses = {name: float(summed.mean()) / TOKENS for name, summed in by_name.items()}
        measured[label] = Measured((0.0,), losses, by_name)
    held_out: Any = HeldOut(next(iter(totals.values())).shape[1])
    return accept_measured(held_out, Objective(), measured)


def before(acceptance: Acceptance) -> str:
    """Return what the rule of one standard error chooses."""
    better = [label for label, one in acceptance.contenders.items() if one.difference < -one.error]
    return min(better, key=lambda label: acceptance.contenders[label].value, default=FOUND)


def noise(rivals: int, documents: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return losses of equally good models, by label."""

    def heavy() -> Tensor:
        shape = (len(DISTRIBUTIONS), documents)
        squares = torch.randn(3, *shape, generator=generator, dtype=torch.float64).square().mean(0)
        return torch.randn(shape, generator=generator, dtype=torch.float64) / squares.sqrt()

    text, shared = heavy(), heavy()
    losses = {FOUND: 3 + text}
    for number in range(rivals):
        losses[str(number)] = 3 + text + 0.1 * (shared + heavy()) / math.sqrt(2)
    return losses


def real(folder: Path) -> tuple[list[tuple[float, ...]], Tensor]:
    """Return points, and the losses of documents at each, (points, distributions, documents), of tiny fine-tunes."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from dem_hub import DEMModel
    from dem_hub.evaluation.likelihood import totals
    from tests.support.counting_models import STEPS, counting, make_counters

    counters = make_counters(folder)
    model = DEMModel.from_pretrained(
        counters.base, vectors=dict.fromkeys(counters.vectors.values(), 0.0), dtype="float32"
    )
    generator = torch.Generator().manual_seed(0)
    points = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)]
    points += [(level,) * 3 for level in (1 / 3, 0.2, 0.45, 0.55, 0.65, 0.75, 0.85, 1.0)]
    points += [tuple(row) for row in (1.2 * torch.rand(48, 3, generator=generator)).tolist()]
    losses = []
    for point in points:
        model.dem.set_coefficients(dict(zip(counters.vectors.values(), point, strict=True)))
        by_name = []
        for step in STEPS.values():
            windows = [Window(tuple(row), tuple(row), place) for place, row in enumerate(counting(step, 600, 9))]
            by_name.append(totals(model, windows, 100) / TOKENS)
        losses.append(torch.stack(by_name))
    return points, torch.stack(losses)


def searches(
    points: list[tuple[float, ...]], losses: Tensor, documents: int, repeat: int, generator: torch.Generator
) -> Iterator[tuple[dict[str, Tensor], dict[str, float]]]:
    """Yield the held-out losses of what was found and of its rivals, and their true losses, of one search each."""
    truth = losses.mean((1, 2))
    commons = [place for place, point in enumerate(points) if len(set(point)) == 1]
    for _ in range(repeat):
        order = torch.randperm(losses.shape[2], generator=generator)
        searched, held_out = losses[:, :, order[: 3 * documents]], losses[:, :, order[3 * documents : 4 * documents]]
        found = int(searched.mean((1, 2)).argmin())
        common = min(commons, key=lambda place: float(held_out[place].mean()))
        places = {FOUND: found, "base": 0, "a": 1, "b": 2, "c": 3, "1/N": 4, COMMON: common}
        yield (
            {label: held_out[place] for label, place in places.items()},
            {label: float(truth[place]) for label, place in places.items()},
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=1000)
    repeat = parser.parse_args().repeat
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    most = LEVEL + 2 * math.sqrt(LEVEL * (1 - LEVEL) / repeat)
    rows: list[tuple[str, int, int, float, float]] = []
    for rivals in (5, 7, 11):
        for documents in (8, 30, 120):
            results = [compared(noise(rivals, documents, generator)) for _ in range(repeat)]
            old = sum(before(result) != FOUND for result in results) / repeat
            rows.append(("noise", rivals, documents, old, sum(not result.is_found for result in results) / repeat))
    with TemporaryDirectory() as folder:
        points, losses = real(Path(folder))
    for documents in (8, 30, 120):
        old = new = 0
        for held_out, truth in searches(points, losses, documents, repeat, generator):
            result = compared(held_out)
            old += truth[before(result)] > truth[FOUND]
            new += truth[result.chosen] > truth[FOUND]
        rows.append(("real", 6, documents, old / repeat, new / repeat))
    print("| losses | rivals | held-out documents | worse returned, one standard error | worse returned, this rule |")
    print("|---|---|---|---|---|")
    for kind, rivals, documents, old_share, share in rows:
        print(f"| {kind} | {rivals} | {documents} of each | {old_share:.1%} | {share:.1%} |")
    return int(any(share > most for *_, share in rows))


if __name__ == "__main__":
    sys.exit(main())
