"""Losses on text that nothing was trained or chosen on: of each document, so that two models can be compared document by document."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from dem_hub import DEMModel
from dem_hub.evaluation.likelihood import totals
from dem_hub.evaluation.windows import Window
from studies.data_mixing.bootstrap import mean_interval
from studies.data_mixing.cache import file_of, keep

Losses = dict[str, list[float]]  # by distribution, the mean loss of a token of each document


class Models:
    """The models that are compared, one in memory at a time: folders, and points over the vectors."""

    def __init__(self, base: Path, folders: Mapping[str, Path], vectors: Mapping[str, Path]) -> None:
        self._base, self._folders, self._vectors = base, {"base": base, **folders}, vectors
        self._points: dict[str, dict[str, float]] = {}
        self._merged: Any = None

    def add(self, label: str, coefficients: Mapping[str, float]) -> None:
        """Name a point: a coefficient for each vector, 0 where none is given."""
        self._points[label] = {str(folder): coefficients.get(name, 0.0) for name, folder in self._vectors.items()}

    @contextmanager
    def opened(self, label: str) -> Iterator[Any]:
        """A model in float32. Merges are made in place, from one to the next."""
        if label not in self._points:
            self._merged = None
            yield AutoModelForCausalLM.from_pretrained(self._folders[label], dtype=torch.float32).eval()
            return
        if self._merged is None:
            self._merged = DEMModel.from_pretrained(
                self._base, vectors=dict.fromkeys(map(str, self._vectors.values()), 0.0), dtype="float32"
            )
        self._merged.dem.set_coefficients(self._points[label])
        yield self._merged.eval()


def score_all(
    models: Models, labels: Sequence[str], data: Mapping[str, Sequence[Window]], folder: Path
) -> dict[str, Losses]:
    """The losses of each model's documents."""
    return {label: keep(file_of(folder, label), lambda label=label: _score(models, label, data)) for label in labels}


def tokens_of(data: Mapping[str, Sequence[Window]]) -> dict[str, list[int]]:
    """How many tokens of each document are scored: all but the first."""
    return {name: [len(window) - 1 for window in windows] for name, windows in data.items()}


def mean_loss(losses: Losses, tokens: Mapping[str, Sequence[int]], names: Sequence[str]) -> float:
    """The mean over distributions of the mean loss of a token: the mean log-perplexity, in nats."""
    return sum(distribution_loss(losses, tokens, name) for name in names) / len(names)


def distribution_loss(losses: Losses, tokens: Mapping[str, Sequence[int]], name: str) -> float:
    """The mean loss of a token of one distribution."""
    return sum(loss * count for loss, count in zip(losses[name], tokens[name], strict=True)) / sum(tokens[name])


def difference(
    first: Losses, second: Losses, tokens: Mapping[str, Sequence[int]], names: Sequence[str], seed: int
) -> tuple[float, float, float]:
    """The mean loss of the first model minus that of the second, and its 95 % interval over documents: above 0, the second is better."""
    groups = [name for name in names for _ in tokens[name]]
    flat = [[value for name in names for value in values[name]] for values in (first, second, tokens)]
    return mean_interval(flat[0], flat[1], weights=flat[2], groups=groups, seed=seed)


def _score(models: Models, label: str, data: Mapping[str, Sequence[Window]]) -> Losses:
    with models.opened(label) as model:
        scored = tokens_of(data)
        return {name: (totals(model, windows) / torch.tensor(scored[name])).tolist() for name, windows in data.items()}
