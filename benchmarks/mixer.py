"""The mixer on the folder of a search: how quickly it follows a slider, how long a merge takes, and how far the losses that
it expects are from those that it measures.

    dem-hub search BASE --vector ... --data gsm=gsm.jsonl --held-out 0 -o found
    python benchmarks/mixer.py found --data gsm=gsm.jsonl
    python benchmarks/mixer.py found --data gsm=gsm.jsonl --only accuracy

The data have to be those of the search, and all of them searched on (`--held-out 0`): other texts have other losses.
The points are random, in all directions from what was found: four fifths of them within 0.2 and at 0.2, and the others
at 0.4 and at 0.8.

The script exits with an error if a slider takes 100 ms or more (95th percentile, with the table and the picture), a
merge 3 s or more (the longest), an expected mean loss within 0.2 is off by 0.01 nats or more, or one beyond by more than
the uncertainty that the page shows.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

import torch

from dem_hub.cli.arguments import split_pairs
from dem_hub.defaults import BATCH_SIZE, MAX_LENGTH
from dem_hub.evaluation.columns import select_columns
from dem_hub.mixer.mixer import Mixer
from dem_hub.mixer.opening import Measuring, open_mixer
from dem_hub.mixer.view import Tab, view_of
from dem_hub.search.points import Point
from dem_hub.search.prediction import Prediction

SLIDER = 0.1  # seconds
MERGE = 3.0
NEAR = 0.2  # of a coefficient: within this distance the expected loss has to be right
OFF = 0.01  # nats

SAME = 1e-4  # nats: float32 in batches of another size differs by less
MOVES = 200  # of sliders: the 95th percentile of fewer would be one of the slowest ten
MERGES = 10
# Distances of the points from what was found. The last two are beyond.
DISTANCES = (0.05, 0.1, 0.15, 0.2, 0.2, 0.2, 0.2, 0.2, 0.4, 0.8)


@dataclass(frozen=True)
class Place:
    """A point: the mean loss that is expected there, how far off it may be, and the one that is measured, in nats."""

    distance: float
    expected: float
    error: float | None
    exact: float

    @property
    def difference(self) -> float:
        """How far the expected loss is from the exact one."""
        return abs(self.expected - self.exact)

    @property
    def holds(self) -> bool:
        """Whether it is within its bound."""
        if self.distance <= NEAR:
            return self.difference < OFF
        return self.error is not None and self.difference <= self.error


def points_around(center: Sequence[float], distances: Sequence[float], seed: int) -> list[Point]:
    """Return a point at each distance from the center, in a random direction."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for distance in distances:
        step = torch.randn(len(center), generator=generator, dtype=torch.float64)
        there = torch.tensor(center, dtype=torch.float64) + distance * step / step.norm()
        found.append(tuple(there.tolist()))
    return found


def seconds_of(call: Callable[[Point], object], points: Sequence[Point]) -> tuple[list[float], float]:
    """Return how long a call takes at each point, and the mean time of the cores, without a first call that warms up."""
    call(points[0])
    taken = []
    used = time.process_time()
    for point in points:
        start = time.perf_counter()
        call(point)
        taken.append(time.perf_counter() - start)
    return taken, (time.process_time() - used) / len(points)


def times(mixer: Mixer, prediction: Prediction, seed: int) -> bool:
    """Print the times, and return whether they are within their bounds."""
    found = prediction.result.best.coefficients
    moves = points_around(found, [NEAR] * MOVES, seed)
    axes = (0, 1) if len(found) > 1 else None
    sliders, cores = seconds_of(lambda point: view_of(mixer, Tab(point, axes=axes)), moves)
    slowest = quantiles(sliders, n=20)[-1]
    print(f"a slider moves: median {1000 * median(sliders):.1f} ms, 95th percentile {1000 * slowest:.1f} ms;", end=" ")
    print(f"{1000 * cores:.1f} ms of the cores")
    merges, cores = seconds_of(mixer.merge, moves[:MERGES])
    print(f"a merge in place: median {median(merges):.2f} s, longest {max(merges):.2f} s; {cores:.2f} s of the cores")
    return slowest < SLIDER and max(merges) < MERGE


def accuracy(mixer: Mixer, prediction: Prediction, rounds: int, seed: int) -> bool:
    """Print what is expected and measured at random points, and return whether all are within their bounds."""
    for name, loss in mixer.measure(mixer.base).items():
        if abs(loss - prediction.base_losses.get(name, loss)) > SAME:
            raise SystemExit(f"On '{name}' the base has another loss than in the search: these are not its data.")
    distances = DISTANCES * rounds
    center = prediction.result.best.coefficients
    places = []
    print("| distance | expected, nats | may be off by | measured | difference |")
    print("|---|---|---|---|---|")
    for distance, point in zip(distances, points_around(center, distances, seed), strict=True):
        exact = prediction.objective(mixer.measure(point))
        if exact is None:
            raise SystemExit("Give the data of every distribution of the search.")
        expected = prediction.value(point)
        place = Place(distance, expected.loss, expected.error, exact)
        places.append(place)
        error = "not known" if place.error is None else f"{place.error:.4f}"
        row = (f"{distance:g}", f"{place.expected:.4f}", error, f"{place.exact:.4f}", f"{place.difference:.4f}")
        print(f"| {' | '.join(row)} |", flush=True)
    for distance in sorted(set(distances)):
        largest = max(place.difference for place in places if place.distance == distance)
        print(f"at {distance:g}: off by at most {largest:.4f} nats")
    return all(place.holds for place in places)


def main() -> None:
    """Measure, and exit with an error if a bound is broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("search", help="folder of dem-hub search")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=FILE", help="data of the search")
    parser.add_argument("--max-length", type=int, default=MAX_LENGTH, help="that of the search")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--rounds", type=int, default=1, help="ten points each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("times", "accuracy"))
    arguments = parser.parse_args()
    data = select_columns(split_pairs(arguments.data, "--data", "gsm=gsm.jsonl"), {})
    measuring = Measuring(data, arguments.max_length, arguments.batch_size)
    # The search ran in float32. Another dtype has other losses.
    mixer = open_mixer(arguments.search, measuring=measuring, output=Path("mixtures"), dtype="float32")
    if mixer.prediction is None:
        raise SystemExit(f"'{arguments.search}' is no folder of a search that left quadratics.")
    holds = True
    if arguments.only != "accuracy":
        holds &= times(mixer, mixer.prediction, arguments.seed)
    if arguments.only != "times":
        holds &= accuracy(mixer, mixer.prediction, arguments.rounds, arguments.seed)
    sys.exit(not holds)


if __name__ == "__main__":
    main()
