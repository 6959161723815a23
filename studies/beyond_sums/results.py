"""What the runs of a setting gave together: means over seeds, and differences with intervals over documents."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from studies.beyond_sums.settings import Setting
from studies.data_mixing.costs import Cost
from studies.data_mixing.scores import Losses, difference, distribution_loss, mean_loss

REFERENCE = "DEM"
GOAL = "uniform mixture"
ROWS = "rows.json"  # of one run

Interval = tuple[float, float, float]  # a mean, and the lower and upper end of its 95 % interval


@dataclass(frozen=True)
class Results:
    """The runs of one setting.

    Args:
        sources (`tuple[str, ...]`): The distributions.
        tokens (`Mapping[str, list[int]]`): By distribution the scored tokens of each test document.
        losses (`Mapping[str, list[Losses]]`): By row the documents' losses under each seed.
        costs (`Mapping[str, Cost]`): By row the tokens that it cost.
    """

    sources: tuple[str, ...]
    tokens: Mapping[str, list[int]]
    losses: Mapping[str, list[Losses]]
    costs: Mapping[str, Cost]

    @classmethod
    def of(cls, runs: Sequence[Mapping[str, Any]]) -> "Results":
        """Join the results of several seeds; a row is there if every seed has it."""
        first = runs[0]
        rows = [label for label in first["rows"] if all(label in run["rows"] for run in runs)]
        losses = {label: [run["rows"][label]["losses"] for run in runs] for label in rows}
        costs = {label: _cost(first["rows"][label]) for label in rows}
        return cls(tuple(first["sources"]), first["tokens"], losses, costs)

    def loss(self, label: str, name: str) -> float:
        """Return a row's loss on one distribution, the mean over seeds."""
        return distribution_loss(self._averaged(label), self.tokens, name)

    def mean(self, label: str) -> float:
        """Return a row's loss, the mean over distributions and seeds."""
        return mean_loss(self._averaged(label), self.tokens, self.sources)

    def by_seed(self, label: str) -> list[float]:
        """Return a row's mean loss under each seed."""
        return [mean_loss(losses, self.tokens, self.sources) for losses in self.losses[label]]

    def gain(self, label: str, names: Sequence[str] = ()) -> Interval:
        """Return the DEM's loss minus a row's, with its interval over documents, of some distributions or of all."""
        return difference(
            self._averaged(REFERENCE), self._averaged(label), self.tokens, list(names) or list(self.sources), seed=0
        )

    def closed(self, label: str) -> float:
        """Return the share of the gap between DEM and the uniform mixture that a row closes."""
        reference = self.mean(REFERENCE)
        return (reference - self.mean(label)) / (reference - self.mean(GOAL))

    def _averaged(self, label: str) -> Losses:
        """Return the documents' losses, the mean over seeds: the documents are the same ones under every seed."""
        runs = self.losses[label]
        return {name: np.mean([losses[name] for losses in runs], axis=0).tolist() for name in self.sources}


def read_results(folder: Path, setting: Setting) -> dict[str, Results]:
    """Read the rows of a setting by the name of their section; nothing before it has those that others are compared with.

    Those that all its seeds have so far are together. Where the first seed has more, it also has a section of its own.
    """
    runs = [json.loads(path.read_text("utf-8")) for path in sorted((folder / setting.name).glob(f"*/{ROWS}"))]
    if not runs or not {REFERENCE, GOAL} <= runs[0]["rows"].keys():
        return {}
    together, first = Results.of(runs), Results.of(runs[:1])
    if len(first.losses) > len(together.losses):
        return {setting.name: together, f"{setting.name}, seed {runs[0]['seed']}": first}
    return {setting.name: together}


def _cost(row: Mapping[str, Any]) -> Cost:
    return Cost(row["training_tokens"], row["evaluation_tokens"])
